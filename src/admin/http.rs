//! The HTTP listener: what monitoring, load balancers and browsers ask.
//!
//! Owns the paths and the forms of the answers. It is read-only, by construction: nothing here can change anything. A
//! client can take little of it: the length of a request's head, the time for it, the life of a connection and their
//! number are bounded, an answer is made whole before it is sent, and only one is made at a time.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::history::{History, INTERVAL};
use super::protocol::{Measure, Status};
use super::view::{Description, Source, View};
use crate::datapath::Stopped;
use crate::metrics;

/// What clients may take of the listener, and how closely it looks at the daemon itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// At once; further ones wait.
    pub connections: usize,
    /// For the head of a request to come in, and for a connection to be silent.
    pub head_time: Duration,
    /// Of a request, in bytes.
    pub head_bytes: usize,
    /// After which a connection takes no more requests.
    pub connection_time: Duration,
    /// For what is under way then to end.
    pub last_answer_time: Duration,
    /// How often a point of the history is taken.
    pub history_interval: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 32,
            head_time: Duration::from_secs(10),
            head_bytes: 16 << 10,
            connection_time: Duration::from_secs(60),
            last_answer_time: Duration::from_secs(10),
            history_interval: INTERVAL,
        }
    }
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum HttpBindError {
    #[error("another program listens on {0}; set admin.listen to another address, or to \"off\"")]
    InUse(SocketAddr),
    #[error("cannot listen on {address}; set admin.listen to an address of this host, or to \"off\"")]
    Io { address: SocketAddr, source: io::Error },
}

/// Listens on `address`; clients wait until [`serve_http`] is called. Needs a tokio runtime.
///
/// # Errors
/// The address is in use, or none of this host.
pub async fn bind_http(address: SocketAddr) -> Result<TcpListener, HttpBindError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => HttpBindError::InUse(address),
        _ => HttpBindError::Io { address, source },
    })
}

/// Answers on `listener` until the future is dropped.
pub async fn serve_http<S: Source>(
    listener: TcpListener,
    source: S,
    description: watch::Receiver<Description>,
    limits: HttpLimits,
) {
    let view = View::new(source, description);
    let site = Arc::new(Site { view, asking: Semaphore::new(1), history: Mutex::default() });
    tokio::select! {
        () = remember(&site, limits.history_interval) => {}
        () = accept(listener, &site, limits) => {}
    }
}

/// Takes note of how the daemon is, for ever.
async fn remember<S: Source>(site: &Site<S>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // That the worker has gone is told elsewhere.
        if let Ok((uptime, status)) = site.view.status_at().await {
            site.history().note(uptime, &status);
        }
    }
}

async fn accept<S: Source>(listener: TcpListener, site: &Arc<Site<S>>, limits: HttpLimits) {
    let connections = Arc::new(Semaphore::new(limits.connections));
    loop {
        // Waiting here leaves further clients in the socket's backlog.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "http connection not accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let site = Arc::clone(site);
        tokio::spawn(async move {
            site.converse(stream, limits).await;
            drop(permit);
        });
    }
}

struct Site<S> {
    view: View<S>,
    /// One answer at a time: each asks the packet worker.
    asking: Semaphore,
    history: Mutex<History>,
}

impl<S: Source> Site<S> {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn converse(&self, stream: TcpStream, limits: HttpLimits) {
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(&request).await) });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(limits.head_time).max_buf_size(limits.head_bytes);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = sleep(limits.connection_time) => {
                connection.as_mut().graceful_shutdown();
                // Whoever still reads has read too slowly.
                timeout(limits.last_answer_time, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "http connection ended");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "this listener only shows\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        let wants_json =
            request.headers().get(ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(JSON.as_bytes()));
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.tell(self.view.status(), |status| readiness(&status, wants_json)).await,
            "/status.json" => self.tell(self.view.status(), |status| json(StatusCode::OK, &status)).await,
            "/" => page(),
            "/history.json" => {
                let told = |(uptime, _)| json(StatusCode::OK, &self.history().report(uptime));
                self.tell(self.view.status_at(), told).await
            }
            "/talkers.json" => {
                let talkers = self.view.talkers(measure(request.uri().query()), TALKERS);
                self.tell(talkers, |talkers| json(StatusCode::OK, &talkers)).await
            }
            "/metrics" => self.tell(self.view.metrics(), scraped).await,
            _ => text(StatusCode::NOT_FOUND, NOWHERE),
        }
    }

    /// Waits for what is asked, and gives it its form.
    async fn tell<T>(
        &self,
        asked: impl Future<Output = Result<T, Stopped>>,
        form: impl FnOnce(T) -> Response<Full<Bytes>>,
    ) -> Response<Full<Bytes>> {
        let asked = async {
            let _permit = self.asking.acquire().await;
            asked.await
        };
        match timeout(ANSWER_TIME, asked).await {
            Ok(Ok(told)) => form(told),
            Ok(Err(stopped)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{stopped}\n")),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the packet worker does not answer\n"),
        }
    }
}

/// Whether packets would flow: a load balancer looks at the status code, a person at the lines.
fn readiness(status: &Status, as_json: bool) -> Response<Full<Bytes>> {
    let (code, word, reasons) = match (status.ready, &status.degraded[..]) {
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "not ready", &status.not_ready[..]),
        (true, []) => (StatusCode::OK, "ready", &[][..]),
        (true, degraded) => (StatusCode::OK, "degraded", degraded),
    };
    if as_json {
        return json(code, &serde_json::json!({ "state": word, "reasons": reasons }));
    }
    let lines = reasons.iter().fold(format!("{word}\n"), |lines, reason| lines + "- " + reason + "\n");
    text(code, lines)
}

/// The status page: one file, that loads nothing from elsewhere and may not.
fn page() -> Response<Full<Bytes>> {
    let mut page = response(StatusCode::OK, "text/html; charset=utf-8", include_str!("page/index.html"));
    page.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    page
}

/// What talkers are to be ranked by: `by=sessions`; by bytes if that says nothing that is known.
fn measure(query: Option<&str>) -> Measure {
    let by = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("by="));
    by.and_then(|by| serde_json::from_value(by.into()).ok()).unwrap_or_default()
}

fn scraped(page: Result<String, metrics::Error>) -> Response<Full<Bytes>> {
    match page {
        Ok(page) => response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(code, "text/plain; charset=utf-8", body)
}

fn json(code: StatusCode, body: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(body) {
        Ok(body) => response(code, JSON, body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn response(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    for (name, value) in
        [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")]
    {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

const NOWHERE: &str =
    "there are /, /healthz, /readyz, /metrics, /status.json, /talkers.json and /history.json\n";
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const JSON: &str = "application/json";
/// For the packet worker, which answers between two batches.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Of each kind.
const TALKERS: usize = 20;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
