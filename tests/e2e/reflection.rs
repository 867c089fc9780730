//! An agent's own services, explored by grpcurl through the caller's sidecar.

use std::convert::Infallible;

use attache::runtime::Nursery;
use http::{HeaderMap, HeaderValue};
use prost::Message;
use prost_types::{
    DescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
    ServiceDescriptorProto,
};
use serde_json::Value;
use tokio::{net::UnixListener, process::Command};
use tonic::{body::Body, server::NamedService};

use crate::support::{
    through::{KEY, NAME, Through},
    tools::{self, Ran, fetched},
};

const SERVICE: &str = "mesh.test.Greeter";

/// Answers every call with an empty message.
#[derive(Clone)]
struct Greeter;

impl NamedService for Greeter {
    const NAME: &'static str = SERVICE;
}

impl tower::Service<http::Request<Body>> for Greeter {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        let frames = futures_util::stream::iter([
            Ok::<_, Infallible>(http_body::Frame::data(bytes::Bytes::from_static(&[0; 5]))),
            Ok(http_body::Frame::trailers(HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]))),
        ]);
        let mut answer = http::Response::new(Body::new(http_body_util::StreamBody::new(frames)));
        let kind = HeaderValue::from_static("application/grpc");
        answer.headers_mut().insert("content-type", kind);
        std::future::ready(Ok(answer))
    }
}

fn described() -> Vec<u8> {
    let name = |name: &str| Some(name.to_owned());
    let file = FileDescriptorProto {
        name: name("greeter.proto"),
        package: name("mesh.test"),
        message_type: vec![DescriptorProto {
            name: name("Nothing"),
            ..Default::default()
        }],
        service: vec![ServiceDescriptorProto {
            name: name("Greeter"),
            method: vec![MethodDescriptorProto {
                name: name("Greet"),
                input_type: name(".mesh.test.Nothing"),
                output_type: name(".mesh.test.Nothing"),
                ..Default::default()
            }],
            ..Default::default()
        }],
        syntax: name("proto3"),
        ..Default::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec()
}

/// Serves the greeter and its description until the test ends.
fn serve(at: &str) {
    let listener = UnixListener::bind(at.strip_prefix("unix:").unwrap()).unwrap();
    let described = described();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(&described)
        .build_v1()
        .unwrap();
    Nursery::here().adopt("agent", async move {
        let server = tonic::transport::Server::builder()
            .add_service(reflection)
            .add_service(Greeter);
        let connections = futures_util::stream::unfold(listener, async |listener| {
            let accepted = listener.accept().await.map(|(io, _)| io);
            Some((accepted, listener))
        });
        server.serve_with_incoming(connections).await.unwrap();
    });
}

#[tokio::test]
async fn grpcurl_explores_an_agents_services_through_the_callers_sidecar() {
    let test = "reflection::grpcurl_explores_an_agents_services_through_the_callers_sidecar";
    let Some(program) = fetched("bin/grpcurl", test) else {
        return;
    };
    let through = Through::empty().await;
    serve(&through.listens());
    through.serves().await;
    let at = through.local();
    let header = format!("{KEY}: {NAME}");
    let run = async |options: &[&str], rest: &[&str]| -> Ran {
        let mut command = Command::new(&program);
        command.args(["-plaintext", "-max-time", "40"]);
        tools::run(command.args(options).arg(&at).args(rest)).await
    };

    let listed = run(&["-H", &header], &["list"]).await.ok();
    assert!(listed.lines().any(|line| line == SERVICE), "{listed}");
    assert!(!listed.contains("attache.v1"), "{listed}");
    let described = run(&["-H", &header], &["describe", SERVICE]).await.ok();
    assert!(described.contains("rpc Greet"), "{described}");
    let greet = format!("{SERVICE}/Greet");
    let greeted = run(&["-H", &header, "-d", "{}"], &[&greet]).await.ok();
    let greeted: Value = serde_json::from_str(&greeted).unwrap();
    assert_eq!(greeted, serde_json::json!({}));

    // The sidecar's own, where nobody is named; and nobody's, where he is not there.
    let own = run(&[], &["list"]).await.ok();
    assert!(own.lines().any(|line| line == "attache.v1.Agent"), "{own}");
    assert!(!own.contains(SERVICE), "{own}");
    let nobody = run(&["-H", "attache-agent: nobody"], &["list"]).await;
    assert_ne!(nobody.code, Some(0), "{}", nobody.out);
    assert!(nobody.err.contains("default/nobody"), "{}", nobody.err);
}
