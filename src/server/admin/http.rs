//! The HTTP server of the admin address. One request per connection, each bounded: its head in
//! bytes, headers and time, the whole in time, and the connections in number, of which one too many
//! ends the oldest. So nobody can hold them for long, and who comes last is heard.

use crate::base::time::Mono;
use crate::io::Clock;
use crate::io::clock::SystemClock;
use crate::io::volume;
use crate::limits::{
    ADMIN_CONNECTIONS_MAX, ADMIN_HEAD_BYTES_MAX, ADMIN_HEAD_TIMEOUT_MS, ADMIN_HEADERS_MAX,
    ADMIN_REQUEST_TIMEOUT_MS, PULSE_MS, REPORT_TIMEOUT_MS,
};
use crate::server::admin::gather::Gatherer;
use crate::server::admin::metrics::{BrokerFigures, Scrape};
use crate::server::admin::pulse::Pulses;
use crate::server::admin::{Phase, Watched};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// After the listener failed, until the next try.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What requests are answered from.
pub struct Desk {
    watched: Watched,
    clock: SystemClock,
    started: Mono,
    pulses: Mutex<Pulses>,
    metrics: Mutex<Metrics>,
}

/// One scrape at a time; those who asked before it began share it.
struct Metrics {
    gatherer: Gatherer,
    began: Option<Mono>,
    text: Bytes,
}

impl Desk {
    /// Nothing is known yet.
    pub fn new(watched: Watched, mut clock: SystemClock) -> Desk {
        let gatherer = Gatherer::new(watched.shards.clone());
        let pulses = Mutex::new(Pulses::new(watched.shards.clone()));
        let metrics = Mutex::new(Metrics { gatherer, began: None, text: Bytes::new() });
        Desk { watched, clock, started: clock.now().mono, pulses, metrics }
    }

    fn now(&self) -> Mono {
        let mut clock = self.clock;
        clock.now().mono
    }

    fn pulses(&self) -> MutexGuard<'_, Pulses> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the broker lives. One that starts does.
    fn liveness(&self) -> Result<(), String> {
        match self.watched.health.phase() {
            Phase::Starting => Ok(()),
            Phase::Serving | Phase::Draining => self.pulses().state(),
        }
    }

    fn readiness(&self) -> Result<(), String> {
        self.watched.health.readiness(self.now()).and_then(|()| self.liveness())
    }

    /// The metrics as they are after `asked`. Waits for the shards; not for the server's thread.
    fn metrics(&self, asked: Mono) -> Bytes {
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        if metrics.began.is_some_and(|began| began >= asked) {
            return metrics.text.clone();
        }
        metrics.began = Some(self.now());
        let shards = match self.watched.health.phase() {
            Phase::Starting => self.watched.shards.iter().map(|_| None).collect(),
            _ => metrics.gatherer.gather(Duration::from_millis(REPORT_TIMEOUT_MS)),
        };
        metrics.text = Scrape::new(self.figures(), shards).into_text().into();
        metrics.text.clone()
    }

    fn figures(&self) -> BrokerFigures {
        let ready = self.readiness().is_ok();
        let disk = self.watched.health.disk();
        let (probes, probe_failures) = (disk.rounds, disk.failures);
        drop(disk);
        BrokerFigures {
            uptime_ms: self.now().ms_since(self.started),
            ready,
            memory_limit_bytes: self.watched.memory_limit_bytes,
            disk_limit_bytes: self.watched.disk_limit_bytes,
            disk_free_bytes: volume::free_bytes(&self.watched.data_dir).ok(),
            probes,
            probe_failures,
        }
    }

    /// Whether a request may see the figures, which name every queue.
    fn admits(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.watched.token else { return true };
        let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        given.and_then(|given| given.strip_prefix(b"Bearer ")).is_some_and(|given| {
            given.len() == token.len()
                && given.iter().zip(token.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
        })
    }
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, desk: Arc<Desk>) {
    drop(tokio::spawn(beat(Arc::clone(&desk))));
    let mut open = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // No descriptor is left, or the connection is gone; either passes.
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        open.retain(|task: &tokio::task::JoinHandle<()>| !task.is_finished());
        if open.len() >= ADMIN_CONNECTIONS_MAX
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(tokio::spawn(converse(stream, Arc::clone(&desk))));
    }
}

/// Looks whether the shards tick, again and again.
async fn beat(desk: Arc<Desk>) {
    let mut interval = tokio::time::interval(Duration::from_millis(PULSE_MS));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if desk.watched.health.phase() != Phase::Starting {
            desk.pulses().beat();
        }
    }
}

/// One connection, from its first byte to its end.
async fn converse(stream: TcpStream, desk: Arc<Desk>) {
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(answer(&desk, &request).await) }
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false)
        .max_buf_size(ADMIN_HEAD_BYTES_MAX)
        .max_headers(ADMIN_HEADERS_MAX)
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(ADMIN_HEAD_TIMEOUT_MS));
    let connection = http.serve_connection(TokioIo::new(stream), service);
    // Whatever a peer did wrong, it has been told as far as that goes; nobody else is concerned.
    let limit = Duration::from_millis(ADMIN_REQUEST_TIMEOUT_MS);
    drop(tokio::time::timeout(limit, connection).await);
}

async fn answer(desk: &Arc<Desk>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into());
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match request.uri().path() {
        "/healthz" => state(desk.liveness(), "ok\n"),
        "/readyz" => state(desk.readiness(), "ready\n"),
        "/metrics" if desk.admits(request) => metrics(desk).await,
        "/metrics" => {
            let why = "the token is wrong or missing: Authorization: Bearer TOKEN\n";
            let mut refusal = text(StatusCode::UNAUTHORIZED, why.into());
            let bearer = HeaderValue::from_static("Bearer");
            refusal.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
            refusal
        }
        "/" => text(StatusCode::OK, "forebay: /healthz, /readyz, /metrics\n".into()),
        _ => text(StatusCode::NOT_FOUND, "there is /healthz, /readyz and /metrics\n".into()),
    }
}

fn state(state: Result<(), String>, good: &'static str) -> Response<Full<Bytes>> {
    match state {
        Ok(()) => text(StatusCode::OK, good.into()),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n").into()),
    }
}

async fn metrics(desk: &Arc<Desk>) -> Response<Full<Bytes>> {
    let (asked, desk) = (desk.now(), Arc::clone(desk));
    match tokio::task::spawn_blocking(move || desk.metrics(asked)).await {
        Ok(body) => response(StatusCode::OK, OPEN_METRICS, body),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "a fault of the broker's own\n".into()),
    }
}

fn text(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    response(status, TEXT, body)
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
