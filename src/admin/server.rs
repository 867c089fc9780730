//! The listener, its bounds and its pages.

use std::{
    convert::Infallible,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header, uri::Authority};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use crate::{
    runtime::{Nursery, Stop},
    telemetry::{Telemetry, logging::FILTER_MAX, metrics::Format},
};

/// Connections at a time: a browser, a probe, a scraper, and room.
const CONNECTIONS: usize = 64;
/// Time to send a request's head.
const HEAD: Duration = Duration::from_secs(5);
/// Life of a connection: nothing here takes long, and a forgotten browser tab holds no slot.
const LIFE: Duration = Duration::from_secs(60);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// Pause after the system ran out of descriptors.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What a process tells about itself. Called on the control thread: it must not block.
pub trait Inspect: Send + Sync + 'static {
    /// Whether the process can serve.
    ///
    /// # Errors
    /// With what is missing, one sentence each.
    fn ready(&self) -> Result<(), Vec<String>>;

    /// What it counts, as Prometheus reads it.
    fn metrics(&self, format: Format) -> String;

    /// What it logs and traces.
    fn telemetry(&self) -> &Telemetry;

    /// How it finds its way to those whom it calls; `None`: it calls nobody.
    /// `query` may ask for something to be explained.
    fn traffic(&self, query: &str) -> Option<Value> {
        let _ = query;
        None
    }

    /// Who it is and how it does: name, version, listeners, counts. Never a secret.
    fn info(&self) -> Value;
}

/// Why the admin listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It would be open to the network.
    #[error(
        "{0} is not a loopback address; the admin listener asks for no identity, so it is for this machine only"
    )]
    NotLoopback(SocketAddr),
    /// The system refuses the address.
    #[error("cannot listen on {address} for admin: {source}; set another `admin` address")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The system's word.
        source: std::io::Error,
    },
}

/// A running admin listener; it ends with its nursery.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
}

impl Server {
    /// Opens `address` (port 0 takes any) and serves it in `nursery`.
    ///
    /// # Errors
    /// When the address is not this machine's alone, or is taken.
    pub async fn start(
        address: SocketAddr,
        inspect: Arc<dyn Inspect>,
        nursery: &Nursery,
    ) -> Result<Self, AdminError> {
        if !address.ip().is_loopback() {
            return Err(AdminError::NotLoopback(address));
        }
        let failed = |source| AdminError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let owner = nursery.clone();
        nursery.start("admin", move |stop| accept(listener, inspect, owner, stop));
        Ok(Self { address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl fmt::Debug for dyn Inspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inspect")
    }
}

async fn accept(listener: TcpListener, inspect: Arc<dyn Inspect>, nursery: Nursery, stop: Stop) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let accepting = async {
        while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let inspect = Arc::clone(&inspect);
                    nursery.start("admin connection", |stop| {
                        connection(stream, inspect, slot, stop)
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the admin listener");
                    sleep(EXHAUSTED).await;
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = accepting => {}
    }
}

async fn connection(
    stream: TcpStream,
    inspect: Arc<dyn Inspect>,
    slot: OwnedSemaphorePermit,
    stop: Stop,
) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES);
    let service = service_fn(move |request| {
        let inspect = Arc::clone(&inspect);
        async move { Ok::<_, Infallible>(answer(request, inspect.as_ref()).await) }
    });
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = timeout(LIFE, serving) => {
            if let Ok(Err(error)) = ended {
                tracing::debug!(%error, "admin connection ended");
            }
        }
        () = stop.cancelled() => {}
    }
    drop(slot);
}

async fn answer(request: Request<Incoming>, inspect: &dyn Inspect) -> Response<Full<Bytes>> {
    if !names_this_machine(&request) {
        let text = json!({"error": "ask for localhost or a loopback address"});
        return written(StatusCode::FORBIDDEN, &text);
    }
    // Whether the process lives is no secret, and takes no work; all else says more than a page need
    // know, be it only by the time that the answer takes.
    let for_all = ["/livez", "/readyz"].contains(&request.uri().path());
    if !for_all && is_of_a_web_page(&request) {
        let text = json!({"error": "not for web pages"});
        return written(StatusCode::FORBIDDEN, &text);
    }
    let read = [Method::GET, Method::HEAD].contains(request.method());
    if read && request.uri().path() == "/metrics" {
        return metrics(&request, inspect);
    }
    if request.method() == Method::PUT && request.uri().path() == "/log" {
        return set_log(request, inspect.telemetry()).await;
    }
    let uri = request.uri();
    page(request.method(), (uri.path(), uri.query()), inspect)
}

fn metrics(request: &Request<Incoming>, inspect: &dyn Inspect) -> Response<Full<Bytes>> {
    let accept = request.headers().get(header::ACCEPT);
    let format = Format::accepted(accept.and_then(|accept| accept.to_str().ok()));
    let kind = header::HeaderValue::from_static(format.content_type());
    respond(StatusCode::OK, kind, inspect.metrics(format))
}

/// The one thing that can be changed here.
async fn set_log(request: Request<Incoming>, telemetry: &Telemetry) -> Response<Full<Bytes>> {
    let refused = |text: String| written(StatusCode::BAD_REQUEST, &json!({"error": text}));
    let body = Limited::new(request.into_body(), FILTER_MAX + 2);
    let Ok(Ok(body)) = timeout(HEAD, body.collect()).await else {
        return refused(format!("send a filter of at most {FILTER_MAX} bytes"));
    };
    let body = body.to_bytes();
    let Ok(filter) = str::from_utf8(&body).map(str::trim) else {
        return refused("a filter is text".into());
    };
    match telemetry.log.set(filter) {
        Ok(was) => written(StatusCode::OK, &json!({"filter": filter, "was": was})),
        Err(error) => refused(error.to_string()),
    }
}

/// Whether a browser asks on behalf of a page. It need not name the page's origin where the page is
/// not shown the answer, but then says how far the page is from here; a person who typed the address
/// is no page.
fn is_of_a_web_page(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    let site = headers.get("sec-fetch-site");
    headers.contains_key(header::ORIGIN) || site.is_some_and(|site| site != "none")
}

/// A web page can point a name of its own at 127.0.0.1 and read us (DNS rebinding), but it cannot
/// change the name that the browser sends. Probes without one are let in.
fn names_this_machine(request: &Request<Incoming>) -> bool {
    let Some(host) = request.headers().get(header::HOST) else {
        return true;
    };
    let Ok(Ok(authority)) = host.to_str().map(str::parse::<Authority>) else {
        return false;
    };
    let name = authority.host().trim_matches(['[', ']']);
    name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn page(
    method: &Method,
    (path, query): (&str, Option<&str>),
    inspect: &dyn Inspect,
) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        let text = json!({"error": "only GET, and PUT of /log"});
        return written(StatusCode::METHOD_NOT_ALLOWED, &text);
    }
    match path {
        "/livez" => written(StatusCode::OK, &json!({"live": true})),
        "/readyz" => match inspect.ready() {
            Ok(()) => written(StatusCode::OK, &json!({"ready": true, "reasons": []})),
            Err(reasons) => written(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({"ready": false, "reasons": reasons}),
            ),
        },
        "/log" => written(
            StatusCode::OK,
            &json!({"filter": inspect.telemetry().log.filter()}),
        ),
        "/breakers" => match inspect.traffic(query.unwrap_or_default()) {
            Some(traffic) => written(StatusCode::OK, &traffic),
            None => written(
                StatusCode::NOT_FOUND,
                &json!({"error": "it calls nobody yet"}),
            ),
        },
        "/" => written(StatusCode::OK, &all_of(inspect)),
        _ => written(
            StatusCode::NOT_FOUND,
            &json!({"error": "no such page", "pages": ["/", "/breakers", "/livez", "/log", "/metrics", "/readyz"]}),
        ),
    }
}

fn all_of(inspect: &dyn Inspect) -> Value {
    let mut info = inspect.info();
    let traces = &inspect.telemetry().traces;
    if let (Some(collector), Some(info)) = (traces.endpoint(), info.as_object_mut()) {
        let spans = traces.sent();
        let traces = json!({"collector": collector, "sent": spans.sent, "dropped": spans.dropped});
        info.insert("traces".to_owned(), traces);
    }
    info
}

fn written(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let json = header::HeaderValue::from_static("application/json");
    respond(status, json, format!("{value}\n"))
}

fn respond(status: StatusCode, kind: header::HeaderValue, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    let fresh = header::HeaderValue::from_static("no-store");
    headers.insert(header::CACHE_CONTROL, fresh);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::telemetry::logging::changeable;

    struct Process(Vec<String>, Telemetry);

    impl Inspect for Process {
        fn ready(&self) -> Result<(), Vec<String>> {
            if self.0.is_empty() {
                Ok(())
            } else {
                Err(self.0.clone())
            }
        }

        fn metrics(&self, format: Format) -> String {
            format!("{format:?}")
        }

        fn telemetry(&self) -> &Telemetry {
            &self.1
        }

        fn info(&self) -> Value {
            json!({"name": "billing"})
        }

        fn traffic(&self, query: &str) -> Option<Value> {
            Some(json!({"asked": query}))
        }
    }

    fn process(missing: &[&str]) -> Process {
        let missing = missing.iter().map(|one| (*one).to_owned());
        Process(missing.collect(), Telemetry::default())
    }

    async fn ask(address: SocketAddr, line: &str) -> (String, Value) {
        ask_for(&address.to_string(), address, line).await
    }

    async fn ask_for(host: &str, address: SocketAddr, line: &str) -> (String, Value) {
        let request = format!("{line} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        send(address, &request).await
    }

    async fn send(address: SocketAddr, request: &str) -> (String, Value) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().to_owned();
        (status, serde_json::from_str(body).unwrap())
    }

    #[tokio::test]
    async fn pages_say_what_the_process_says() {
        let nursery = Nursery::here();
        let any = "127.0.0.1:0".parse().unwrap();
        let fine = Server::start(any, Arc::new(process(&[])), &nursery);
        let fine = fine.await.unwrap().address();
        let missing = Arc::new(process(&["the registry is away"]));
        let lame = Server::start(any, missing, &nursery);
        let lame = lame.await.unwrap().address();

        assert_eq!(ask(fine, "GET /livez").await.0, "200");
        assert_eq!(ask(fine, "GET /readyz").await.0, "200");
        assert_eq!(ask(fine, "GET /").await.1, json!({"name": "billing"}));
        assert_eq!(ask(fine, "GET /secret").await.0, "404");
        assert_eq!(ask(fine, "POST /livez").await.0, "405");
        for (host, status) in [
            ("localhost:7480", "200"),
            ("[::1]:7480", "200"),
            ("evil.example", "403"),
            ("127.0.0.1.evil.example", "403"),
        ] {
            assert_eq!(ask_for(host, fine, "GET /").await.0, status, "{host}");
        }
        assert_eq!(ask(lame, "GET /livez").await.0, "200");
        let (status, body) = ask(lame, "GET /readyz").await;
        assert_eq!(status, "503");
        assert_eq!(body["reasons"], json!(["the registry is away"]));
        nursery.close(Duration::from_secs(1)).await;
        assert!(TcpStream::connect(fine).await.is_err());
    }

    #[tokio::test]
    async fn the_log_is_changed_by_who_is_no_web_page() {
        let nursery = Nursery::here();
        let (_layer, log) = changeable("info");
        let telemetry = Telemetry {
            log: log.clone(),
            ..Telemetry::default()
        };
        let process = Arc::new(Process(Vec::new(), telemetry));
        let any = "127.0.0.1:0".parse().unwrap();
        let at = Server::start(any, process, &nursery).await.unwrap();
        let at = at.address();
        let host = at.to_string();
        assert_eq!(ask(at, "GET /log").await.1, json!({"filter": "info"}));

        let put = async |host: &str, more: &str, body: &str| {
            let length = body.len();
            let head = format!("PUT /log HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
            let request = format!("{head}{more}content-length: {length}\r\n\r\n{body}");
            send(at, &request).await
        };
        let (status, body) = put(&host, "", "attache=debug,warn\n").await;
        assert_eq!(status, "200");
        assert_eq!(body, json!({"filter": "attache=debug,warn", "was": "info"}));
        let long = "a=info,".repeat(400);
        for (host, more, filter, status) in [
            ("evil.example", "", "off", "403"),
            (
                host.as_str(),
                "origin: https://evil.example\r\n",
                "off",
                "403",
            ),
            (&host, "origin: null\r\n", "off", "403"),
            (&host, "", "loud", "400"),
            (&host, "", "", "400"),
            (&host, "", &long, "400"),
        ] {
            let (answered, body) = put(host, more, filter).await;
            assert_eq!(answered, status, "{host} {more} {filter:.20}: {body}");
        }
        // What a browser asks first, and what it need not ask for.
        assert_eq!(ask(at, "OPTIONS /log").await.0, "405");
        assert_eq!(ask(at, "POST /log").await.0, "405");
        assert_eq!(ask(at, "PUT /").await.0, "405");
        assert_eq!(log.filter().as_deref(), Some("attache=debug,warn"));
        nursery.close(Duration::from_secs(1)).await;
    }

    #[tokio::test]
    async fn web_pages_are_told_nothing_but_that_it_lives() {
        let nursery = Nursery::here();
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::start(any, Arc::new(process(&[])), &nursery);
        let at = server.await.unwrap().address();
        let read = async |method: &str, path: &str, more: &str| {
            let head = format!("{method} {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n");
            let mut stream = TcpStream::connect(at).await.unwrap();
            let request = format!("{head}{more}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text.split(' ').nth(1).unwrap().to_owned()
        };
        for (more, status) in [
            ("", "200"),
            ("sec-fetch-site: none\r\n", "200"),
            ("sec-fetch-site: cross-site\r\n", "403"),
            ("sec-fetch-site: same-site\r\n", "403"),
            ("origin: https://evil.example\r\n", "403"),
            ("origin: null\r\n", "403"),
        ] {
            for path in ["/", "/breakers", "/breakers?skill=a.b", "/log", "/metrics"] {
                assert_eq!(read("GET", path, more).await, status, "{path} {more}");
                assert_eq!(read("HEAD", path, more).await, status, "{path} {more}");
            }
            for path in ["/livez", "/readyz"] {
                assert_eq!(read("GET", path, more).await, "200", "{path} {more}");
            }
        }
        let asked = ask(at, "GET /breakers?skill=a.b").await.1;
        assert_eq!(asked, json!({"asked": "skill=a.b"}));
        nursery.close(Duration::from_secs(1)).await;
    }

    #[tokio::test]
    async fn other_machines_are_kept_out_and_a_taken_port_is_named() {
        let nursery = Nursery::here();
        let process = || Arc::new(process(&[]));
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let refused = Server::start(address.parse().unwrap(), process(), &nursery).await;
            assert!(
                matches!(refused, Err(AdminError::NotLoopback(_))),
                "{address}"
            );
        }
        let any = "127.0.0.1:0".parse().unwrap();
        let first = Server::start(any, process(), &nursery).await.unwrap();
        let second = Server::start(first.address(), process(), &nursery).await;
        let text = second.unwrap_err().to_string();
        assert!(text.contains(&first.address().to_string()), "{text}");
        nursery.abort().await;
    }
}
