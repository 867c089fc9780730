//! Calls of one agent to another one's own service, through both sidecars: a caller in Rust, an agent
//! in Python with nothing but grpcio.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures_util::{StreamExt, stream};
use http::uri::PathAndQuery;
use tonic::{
    Code, Request, Response, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{BinaryMetadataValue, MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::support::{
    mesh::{Site, Up, agent},
    through,
    tools::{fetched, root},
    wait::within,
};

/// The four kinds of method of the agent, `tests/polyglot/python/kinds.py`.
const KINDS: [&str; 4] = ["Unary", "ClientStream", "ServerStream", "Both"];
const AGENT: &str = "kinds";
const CALLER: &str = "spiffe://attache.local/ns/default/agent/home";
/// Its words when it fails, and its details.
const TEXT: &str = "zu spät → 100%";

/// Messages are bytes, as the agent has them.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A mesh with a caller and the agent; `None`, with a word, without Python.
async fn mesh(test: &str) -> Option<(Site, Up)> {
    let python = fetched("python/bin/python", test)?;
    let agent_of_python = format!(
        "[[agents]]\nname = {AGENT:?}\ncommand = [{:?}, {:?}]\nagent_health = \"connect\"\n",
        python.display().to_string(),
        root()
            .join("tests/polyglot/python/kinds.py")
            .display()
            .to_string(),
    );
    let site = Site::new(&(agent("home", &["test.echo"], "") + &agent_of_python));
    let up = site.up(&[]).await;
    through::serves(&up.instance("default/home", 0).local, AGENT).await;
    Some((site, up))
}

/// A client of the caller's own sidecar.
struct Client(Grpc<Channel>);

impl Client {
    fn at(up: &Up) -> Self {
        let local = up.instance("default/home", 0).local.clone();
        let channel = Endpoint::from_shared(local).unwrap().connect_lazy();
        Self(Grpc::new(channel))
    }

    /// Messages there, messages back; with `metadata`, of whatever kind the method is.
    async fn call(
        &mut self,
        method: &str,
        asks: &[&'static [u8]],
        metadata: MetadataMap,
    ) -> Result<Response<Streaming<Bytes>>, Status> {
        within("a client is ready", self.0.ready()).await.unwrap();
        let path = format!("/mesh.test.Kinds/{method}");
        let asks: Vec<_> = asks.iter().map(|ask| Bytes::from_static(ask)).collect();
        let mut request = Request::new(stream::iter(asks));
        *request.metadata_mut() = metadata;
        let path = PathAndQuery::try_from(path).unwrap();
        within("an answer begins", self.0.streaming(request, path, Raw)).await
    }

    /// The same to its end: headers, messages and trailers.
    async fn whole(
        &mut self,
        method: &str,
        asks: &[&'static [u8]],
        metadata: MetadataMap,
    ) -> Result<(MetadataMap, Vec<Bytes>, MetadataMap), Status> {
        let answer = self.call(method, asks, metadata).await?;
        let (headers, mut body, _) = answer.into_parts();
        let mut messages = Vec::new();
        while let Some(message) = within("a message comes", body.next()).await {
            messages.push(message?);
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        Ok((headers, messages, trailers))
    }
}

/// Metadata that names the agent.
fn named() -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("attache-agent", MetadataValue::from_static(AGENT));
    metadata
}

#[tokio::test]
async fn all_kinds_of_calls_pass_between_rust_and_python_with_all_they_carry() {
    let test = "kinds::all_kinds_of_calls_pass_between_rust_and_python_with_all_they_carry";
    let Some((_site, up)) = mesh(test).await else {
        return;
    };
    let mut client = Client::at(&up);
    let every: Vec<u8> = (0..=255).collect();
    for kind in KINDS {
        let streams_in = matches!(kind, "ClientStream" | "Both");
        let asks: &[&[u8]] = match streams_in {
            true => &[b"one", b"", b"three"],
            false => &[b"one"],
        };
        let mut metadata = named();
        metadata.append("x-many", MetadataValue::from_static("a"));
        metadata.append("x-many", MetadataValue::from_static("b"));
        metadata.insert_bin("x-blob-bin", BinaryMetadataValue::from_bytes(&every));
        let (headers, messages, trailers) = client.whole(kind, asks, metadata).await.unwrap();
        let expected: &[&[u8]] = match kind {
            "Unary" => &[b"one"],
            "ClientStream" => &[b"onethree"],
            "ServerStream" => &[b"one", b"one", b"one"],
            _ => asks,
        };
        assert_eq!(messages, expected, "{kind}");
        let many: Vec<_> = headers.get_all("got-x-many").iter().collect();
        assert_eq!(many, ["a", "b"], "{kind}");
        let blob = headers.get_bin("got-x-blob-bin").unwrap();
        assert_eq!(blob.to_bytes().unwrap(), every, "{kind}");
        let sum = u64::try_from(asks.concat().len()).unwrap();
        let told = trailers.get_bin("x-sum-bin").unwrap().to_bytes().unwrap();
        assert_eq!(told, &sum.to_be_bytes()[..], "{kind}");
        assert_eq!(trailers.get("x-sum").unwrap(), &sum.to_string(), "{kind}");
    }
}

#[tokio::test]
async fn a_status_passes_with_its_words_details_and_trailers() {
    let test = "kinds::a_status_passes_with_its_words_details_and_trailers";
    let Some((_site, up)) = mesh(test).await else {
        return;
    };
    let mut client = Client::at(&up);
    let details: Vec<u8> = (0..=255).collect();
    // Any that is not the breaker's; NOT_FOUND, PERMISSION_DENIED, ABORTED, UNAUTHENTICATED.
    for (kind, code) in KINDS.into_iter().zip([5, 7, 10, 16]) {
        let ask: &'static [u8] = format!("fail:{code}").leak().as_bytes();
        let status = client.whole(kind, &[ask], named()).await.unwrap_err();
        assert_eq!(status.code(), Code::from_i32(code), "{kind}: {status:?}");
        assert_eq!(status.message(), TEXT, "{kind}");
        assert_eq!(status.details(), details, "{kind}");
        assert!(status.metadata().get("x-sum").is_some(), "{kind}");
    }
}

#[tokio::test]
async fn an_agent_is_told_who_calls_and_how_long_is_left_and_nobody_lies_about_it() {
    let test = "kinds::an_agent_is_told_who_calls_and_how_long_is_left_and_nobody_lies_about_it";
    let Some((_site, up)) = mesh(test).await else {
        return;
    };
    let mut client = Client::at(&up);
    let mut metadata = named();
    for (key, value) in [
        (
            "attache-caller",
            "spiffe://attache.local/ns/default/agent/other",
        ),
        ("attache-correlation-id", "work-7"),
        ("attache-not-processed", "1"),
    ] {
        metadata.insert(key, MetadataValue::from_static(value));
    }
    metadata.insert("grpc-timeout", MetadataValue::from_static("30S"));
    let (headers, messages, _) = client.whole("Unary", &[b"left"], metadata).await.unwrap();
    let told = |key: &str| {
        let values = headers.get_all(key).iter();
        let values = values.map(|value| value.to_str().unwrap().to_owned());
        values.collect::<Vec<_>>()
    };
    assert_eq!(told("got-attache-caller"), [CALLER]);
    assert_eq!(told("got-attache-correlation-id"), ["work-7"]);
    assert_eq!(told("got-attache-not-processed"), [""; 0]);
    assert_eq!(told("got-attache-agent"), [""; 0]);
    let left: u64 = std::str::from_utf8(&messages[0]).unwrap().parse().unwrap();
    assert!((1..30_000).contains(&left), "{left} ms");

    // Without any of it there is a correlation id all the same, and no deadline.
    let (headers, messages, _) = client.whole("Unary", &[b"left"], named()).await.unwrap();
    let made = headers.get("got-attache-correlation-id").unwrap();
    made.to_str().unwrap().parse::<uuid::Uuid>().unwrap();
    assert_eq!(messages, [&b"none"[..]]);
}

#[tokio::test]
async fn calls_for_nobody_are_told_what_to_do_and_deadlines_are_kept() {
    let test = "kinds::calls_for_nobody_are_told_what_to_do_and_deadlines_are_kept";
    let Some((_site, up)) = mesh(test).await else {
        return;
    };
    let mut client = Client::at(&up);
    let with = |value: Option<&'static str>| {
        let mut metadata = MetadataMap::new();
        if let Some(value) = value {
            metadata.insert("attache-agent", MetadataValue::from_static(value));
        }
        metadata
    };
    for (metadata, code, told) in [
        (with(None), Code::Unimplemented, "attache-agent"),
        (
            with(Some("Nobody!")),
            Code::InvalidArgument,
            "namespace/name",
        ),
        (with(Some("nobody")), Code::Unavailable, "attache agents"),
        (with(Some("other/kinds")), Code::Unavailable, "other/kinds"),
    ] {
        let status = client.whole("Unary", &[b"x"], metadata).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(told), "{status:?}");
    }
    // A stream that nobody ends: cut at the time that the caller gave.
    within("a client is ready", client.0.ready()).await.unwrap();
    let asks = stream::iter([Bytes::from_static(b"x")]).chain(stream::pending());
    let mut request = Request::new(asks);
    *request.metadata_mut() = named();
    let timeout = MetadataValue::from_static("700m");
    request.metadata_mut().insert("grpc-timeout", timeout);
    let path = PathAndQuery::from_static("/mesh.test.Kinds/Both");
    let answer = within("an answer begins", client.0.streaming(request, path, Raw)).await;
    let ended = match answer {
        Err(status) => status,
        Ok(answer) => {
            let mut body = answer.into_inner();
            loop {
                match within("the deadline is kept", body.next()).await {
                    Some(Ok(_)) => {}
                    Some(Err(status)) => break status,
                    None => panic!("it ended well"),
                }
            }
        }
    };
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended:?}");
    tokio::time::timeout(
        Duration::from_secs(30),
        client.whole("Unary", &[b"x"], named()),
    )
    .await
    .unwrap()
    .unwrap();
}
