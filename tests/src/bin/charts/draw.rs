//! The charts.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::full_palette::{BLUE_600, DEEPORANGE_600, GREEN_700, GREY_700, PURPLE_600};
use tests::simulation::Measured;

/// One for each scheduler, in their order; fit for light and dark.
const COLOURS: [RGBColor; 5] = [BLUE_600, DEEPORANGE_600, GREEN_700, PURPLE_600, GREY_700];

fn colour(place: usize) -> RGBColor {
    COLOURS[place % COLOURS.len()]
}

/// What each of a hundred equal backends got, in per cent of what is due: a
/// point each, a panel for each scheduler.
pub(crate) fn distribution(measured: &[Measured]) -> Result<String> {
    let mut svg = String::new();
    let height = 60 + 170 * measured.len() as u32;
    {
        let area = SVGBackend::with_string(&mut svg, (900, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let area = area.titled(
            "A million connections to 100 equal backends: what each got, in % of what is due",
            ("sans-serif", 18),
        )?;
        for (place, (panel, one)) in area
            .split_evenly((measured.len(), 1))
            .iter()
            .zip(measured)
            .enumerate()
        {
            let mut chart = ChartBuilder::on(panel)
                .caption(one.scheduler.name, ("sans-serif", 15))
                .margin(8)
                .x_label_area_size(22)
                .y_label_area_size(48)
                .build_cartesian_2d(0_f64..100.0, 92_f64..108.0)?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .light_line_style(TRANSPARENT)
                .y_labels(5)
                .x_labels(10)
                .y_label_formatter(&|percent| format!("{percent:.0} %"))
                .x_label_formatter(&|place| format!("{place:.0}"))
                .draw()?;
            let points = (0..).zip(&one.equal);
            chart.draw_series(points.map(|(backend, part)| {
                let at = (f64::from(backend), part * 100.0);
                Circle::new(at, 2, colour(place).filled())
            }))?;
        }
        area.present()?;
    }
    Ok(svg + "\n")
}

/// One of the figures.
type Part = fn(&Measured) -> f64;

/// The part of the connections of those who stay that would go elsewhere.
pub(crate) fn disruption(measured: &[Measured]) -> Result<String> {
    let events: [(&str, Part); 4] = [
        ("one of 100 goes down", |one| one.moved_by_down),
        ("a second one goes down", |one| one.moved_by_second),
        ("one is taken out of the file", |one| one.moved_by_removal),
        ("one is added to the file", |one| one.moved_by_addition),
    ];
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (900, 420)).into_drawing_area();
        area.fill(&WHITE)?;
        let width = measured.len() as f64 + 1.0;
        let mut chart = ChartBuilder::on(&area)
            .caption(
                "Connections of the other backends that would move, without the flow table",
                ("sans-serif", 18),
            )
            .margin(8)
            .x_label_area_size(30)
            .y_label_area_size(56)
            .build_cartesian_2d(0_f64..width * events.len() as f64 + 3.0, 0_f64..115.0)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .disable_x_axis()
            .y_label_formatter(&|percent| format!("{percent:.0} %"))
            .draw()?;
        let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
        for (place, one) in measured.iter().enumerate() {
            let left = |event: usize| event as f64 * width + place as f64 + 0.5;
            let bars = events.iter().enumerate().map(|(event, (_, moved))| {
                let corners = [(left(event), 0.0), (left(event) + 0.9, moved(one) * 100.0)];
                Rectangle::new(corners, colour(place).filled())
            });
            chart
                .draw_series(bars)?
                .label(one.scheduler.name)
                .legend(move |(x, y)| {
                    Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour(place).filled())
                });
            chart.draw_series(events.iter().enumerate().map(|(event, (_, moved))| {
                let part = moved(one) * 100.0;
                let figure = if part == 0.0 {
                    "0".to_owned()
                } else {
                    format!("{part:.2}")
                };
                Text::new(figure, (left(event) + 0.15, part + 4.5), text(12))
            }))?;
        }
        for (event, (name, _)) in events.iter().enumerate() {
            let at = (event as f64 * width + 0.5, 112.0);
            chart.draw_series([Text::new(*name, at, text(13))])?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
    }
    Ok(svg + "\n")
}
