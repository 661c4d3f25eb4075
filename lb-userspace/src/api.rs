//! The control socket: HTTP and JSON over a Unix socket.
//!
//! Whoever may write to the socket may change the balancer, so it is made with
//! mode 0660: root and its group. Handlers turn [`Controller`] into the forms
//! of [`types`]; long work (reading the flow tables) is done without holding
//! the controller.

pub mod client;
pub mod types;

mod events;
mod sync;
mod view;

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::sync::{Mutex, Semaphore};

use self::types::{AddBackend, Changed, Drain, Refused, Reloaded, SetWeight};
use crate::controller::{Controller, Refusal};
use crate::events::Journal;
use crate::health::TargetId;

/// The most flows one answer lists.
const MAX_LISTED_FLOWS: usize = 100_000;

/// No request has a body near as large.
const MAX_BODY: usize = 64 << 10;

/// What every handler has.
#[derive(Clone)]
pub struct Shared {
    /// The controller.
    pub controller: Arc<Mutex<Controller>>,
    /// The file that a reload reads.
    pub config: Arc<FilePath>,
    /// What happened; the controller's.
    pub journal: Journal,
    /// Places for readers that wait.
    waiting: Arc<Semaphore>,
}

impl Shared {
    /// For this controller and this file.
    pub fn new(controller: Arc<Mutex<Controller>>, journal: Journal, config: &FilePath) -> Self {
        Self {
            controller,
            config: Arc::from(config),
            journal,
            waiting: Arc::new(Semaphore::new(events::MAX_WAITING)),
        }
    }
}

/// The routes of the control socket.
pub fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/services/{service}", get(service))
        .route("/v1/services/{service}/backends", post(add))
        .route(
            "/v1/services/{service}/backends/{backend}",
            axum::routing::delete(remove),
        )
        .route(
            "/v1/services/{service}/backends/{backend}/weight",
            put(weight),
        )
        .route(
            "/v1/services/{service}/backends/{backend}/drain",
            post(drain),
        )
        .route(
            "/v1/services/{service}/backends/{backend}/enable",
            post(enable),
        )
        .route("/v1/backends", get(backends))
        .route("/v1/overrides", get(overrides).delete(clear))
        .route("/v1/flows", get(flows))
        .route("/v1/drops", get(drops))
        .route("/v1/events", get(events::events))
        .route("/v1/ha", get(ha))
        .route("/v1/ha/yield", post(yield_role))
        .route("/v1/reload", post(reload))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (
            status,
            Json(Refused {
                error: self.to_string(),
            }),
        )
            .into_response()
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

async fn unknown() -> Refusal {
    Refusal::Unknown("the daemon knows no such request; is `lb` of another version?".into())
}

async fn status(State(shared): State<Shared>) -> Answer<types::Status> {
    Ok(Json(view::status(&*shared.controller.lock().await)))
}

async fn ha(State(shared): State<Shared>) -> Answer<types::Ha> {
    Ok(Json(view::ha(&*shared.controller.lock().await)?))
}

async fn yield_role(
    State(shared): State<Shared>,
    Json(types::Yield { force }): Json<types::Yield>,
) -> Answer<Changed> {
    let message = shared.controller.lock().await.yield_role(force)?;
    Ok(Json(Changed {
        message,
        backend: None,
    }))
}

async fn services(State(shared): State<Shared>) -> Answer<Vec<types::ServiceSummary>> {
    Ok(Json(view::summaries(&*shared.controller.lock().await)))
}

async fn service(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Answer<types::ServiceDetail> {
    shared.controller.lock().await.find_service(&name)?;
    let controller = shared.controller.lock().await;
    let place = controller.find_service(&name)?;
    Ok(Json(view::detail(&controller, place)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfService {
    service: Option<String>,
}

async fn backends(
    State(shared): State<Shared>,
    Query(query): Query<OfService>,
) -> Answer<Vec<types::Backend>> {
    if let Some(name) = &query.service {
        shared.controller.lock().await.find_service(name)?;
    }
    let controller = shared.controller.lock().await;
    let places = match &query.service {
        Some(name) => {
            let place = controller.find_service(name)?;
            place..place + 1
        }
        None => 0..controller.desired.len(),
    };
    let mut all = Vec::new();
    for place in places {
        all.extend(view::backends(&controller, place)?);
    }
    Ok(Json(all))
}

async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Refusal::Failed(anyhow::anyhow!(
            "reading the table of connections failed: {error}"
        ))
    })
}

/// The answer to a change of one backend.
async fn changed(shared: &Shared, id: &TargetId, message: String) -> Answer<Changed> {
    let controller = shared.controller.lock().await;
    let (place, within) = controller.find(&id.service, &id.backend)?;
    let backend = view::backends(&controller, place)?.swap_remove(within);
    Ok(Json(Changed {
        message,
        backend: Some(backend),
    }))
}

async fn weight(
    State(shared): State<Shared>,
    Path((service, backend)): Path<(String, String)>,
    Json(SetWeight { weight }): Json<SetWeight>,
) -> Answer<Changed> {
    let id = TargetId { service, backend };
    shared.controller.lock().await.set_weight(&id, weight)?;
    let message = format!(
        "{}/{} has weight {weight} from the next connection on; established ones stay",
        id.service, id.backend
    );
    changed(&shared, &id, message).await
}

async fn drain(
    State(shared): State<Shared>,
    Path((service, backend)): Path<(String, String)>,
    Json(wanted): Json<Drain>,
) -> Answer<Changed> {
    let id = TargetId { service, backend };
    let deadline = wanted.deadline_ms.map(Duration::from_millis);
    let given = shared.controller.lock().await.drain(&id, deadline)?;
    let limit = match given.map(|given| Duration::from_secs(given.as_secs())) {
        Some(Duration::ZERO) => ", but their time is over: they are reset".to_owned(),
        Some(given) => format!(
            ", and are reset if they have not in {}",
            humantime::format_duration(given)
        ),
        None => String::new(),
    };
    let message = format!(
        "{}/{} takes no new connections; established ones stay until they end{limit}",
        id.service, id.backend
    );
    changed(&shared, &id, message).await
}

async fn enable(
    State(shared): State<Shared>,
    Path((service, backend)): Path<(String, String)>,
) -> Answer<Changed> {
    let id = TargetId { service, backend };
    shared.controller.lock().await.enable(&id)?;
    let message = format!("{}/{} takes new connections again", id.service, id.backend);
    changed(&shared, &id, message).await
}

async fn add(
    State(shared): State<Shared>,
    Path(service): Path<String>,
    Json(wanted): Json<AddBackend>,
) -> Answer<Changed> {
    let id = TargetId {
        service,
        backend: wanted.name,
    };
    shared
        .controller
        .lock()
        .await
        .add_backend(&id, wanted.address, wanted.weight)?;
    let message = format!(
        "{}/{} at {} is part of the schedule; the file does not have it yet",
        id.service, id.backend, wanted.address
    );
    changed(&shared, &id, message).await
}

async fn remove(
    State(shared): State<Shared>,
    Path((service, backend)): Path<(String, String)>,
) -> Answer<Changed> {
    let id = TargetId { service, backend };
    shared.controller.lock().await.remove_backend(&id)?;
    let message = format!(
        "{}/{} is taken out: no new connections; established ones stay until they end",
        id.service, id.backend
    );
    Ok(Json(Changed {
        message,
        backend: None,
    }))
}

async fn overrides(State(shared): State<Shared>) -> Answer<Vec<types::Override>> {
    Ok(Json(view::overrides(&*shared.controller.lock().await)))
}

async fn clear(State(shared): State<Shared>) -> Answer<Changed> {
    let count = shared.controller.lock().await.clear_overrides()?;
    let message = match count {
        0 => "nothing differed from the file".to_owned(),
        1 => "1 backend is again as in the file".to_owned(),
        count => format!("{count} backends are again as in the file"),
    };
    Ok(Json(Changed {
        message,
        backend: None,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhichFlows {
    service: Option<String>,
    backend: Option<String>,
    limit: Option<usize>,
}

async fn flows(
    State(shared): State<Shared>,
    Query(query): Query<WhichFlows>,
) -> Answer<types::Flows> {
    let limit = query.limit.unwrap_or(100).min(MAX_LISTED_FLOWS);
    let (names, flows) = {
        let controller = shared.controller.lock().await;
        if let Some(service) = &query.service {
            let place = controller.find_service(service)?;
            if let Some(backend) = &query.backend {
                controller.find(&controller.desired[place].name, backend)?;
            }
        }
        (view::Names::of(&controller), controller.dataplane.table())
    };
    let listed = in_thread(move || {
        view::flows(
            &flows,
            &names,
            query.service.as_deref(),
            query.backend.as_deref(),
            limit,
        )
    });
    Ok(Json(listed.await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhichDrops {
    #[serde(default)]
    all: bool,
}

async fn drops(
    State(shared): State<Shared>,
    Query(query): Query<WhichDrops>,
) -> Answer<Vec<types::DropCount>> {
    Ok(Json(view::drops(
        &*shared.controller.lock().await,
        query.all,
    )?))
}

async fn reload(State(shared): State<Shared>) -> Answer<Reloaded> {
    let changes = shared
        .controller
        .lock()
        .await
        .reload(&shared.config)
        .await?;
    Ok(Json(Reloaded { changes }))
}
