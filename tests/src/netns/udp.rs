//! Backends that answer datagrams: with their name and the client they saw, or
//! with what they got.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Answer, Family, Host, http};

/// How often an idle server looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(50);

/// A server on a host, as a thread of this process.
pub struct UdpEcho {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Starts to listen on the host's address of the family.
    pub fn start(host: &Host, family: Family, port: u16) -> Result<Self> {
        Self::named(host, SocketAddr::new(host.address(family), port))
    }

    /// Starts to listen on an address that the host has.
    pub fn named(host: &Host, address: SocketAddr) -> Result<Self> {
        Self::serve(host, address, named)
    }

    /// Starts to listen on an address that the host has, and to answer every
    /// datagram with itself.
    pub fn mirror(host: &Host, address: SocketAddr) -> Result<Self> {
        Self::serve(host, address, |_, _, datagram| datagram.to_vec())
    }

    fn serve(host: &Host, address: SocketAddr, answer: AnswerTo) -> Result<Self> {
        let socket = host
            .enter(|| UdpSocket::bind(address))
            .with_context(|| format!("{} cannot listen on {address}", host.name))?;
        socket.set_read_timeout(Some(GLANCE))?;
        let ended = Arc::new(AtomicBool::new(false));
        let (name, end) = (host.name.clone(), Arc::clone(&ended));
        let thread = thread::spawn(move || serve(&socket, &name, answer, &end));
        Ok(Self {
            ended,
            thread: Some(thread),
        })
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a server of this name answers to a client's datagram.
type AnswerTo = fn(&str, SocketAddr, &[u8]) -> Vec<u8>;

fn named(name: &str, peer: SocketAddr, datagram: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(datagram);
    format!("{name} {peer} {text}").into_bytes()
}

fn serve(socket: &UdpSocket, name: &str, answer: AnswerTo, ended: &AtomicBool) {
    let mut datagram = vec![0; 1 << 16];
    while !ended.load(Ordering::Relaxed) {
        // An error is either the glance's timeout or an ICMP message for an
        // answer that came too late; neither ends the server.
        if let Ok((length, peer)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&answer(name, peer, &datagram[..length]), peer);
        }
    }
}

/// Asks `text` from a connected socket of the calling thread's host; the answer
/// must carry it.
pub fn ask_udp(socket: &UdpSocket, text: &str) -> Result<Answer> {
    socket.set_read_timeout(Some(http::PATIENCE))?;
    socket.send(text.as_bytes())?;
    let mut datagram = [0; 2048];
    let length = socket.recv(&mut datagram).context("no answer came")?;
    let answer = String::from_utf8_lossy(&datagram[..length]);
    let words: Vec<&str> = answer.splitn(3, ' ').collect();
    ensure!(
        words.len() == 3 && words[2] == text,
        "asked {text:?}, but {answer:?} came back"
    );
    Ok(Answer {
        backend: words[0].into(),
        client: words[1].parse()?,
        received: None,
    })
}

/// Sends this from a connected socket to a mirror. What comes back must be the
/// same; `false` if nothing does before `patience` ends.
pub fn mirrored(socket: &UdpSocket, datagram: &[u8], patience: Duration) -> Result<bool> {
    socket.set_read_timeout(Some(patience))?;
    let length = datagram.len();
    socket
        .send(datagram)
        .with_context(|| format!("cannot send {length} bytes"))?;
    let mut answer = vec![0; 1 << 16];
    match socket.recv(&mut answer) {
        Ok(came) => {
            ensure!(
                answer[..came] == *datagram,
                "of {length} bytes, {came} came back, the first {} as they were sent",
                answer[..came]
                    .iter()
                    .zip(datagram)
                    .take_while(|(one, other)| one == other)
                    .count()
            );
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error).context("no answer can come"),
    }
}
