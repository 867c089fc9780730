//! What every gRPC listener of ours has: reflection of what is really served there, in both versions
//! that clients ask for.

use tonic::service::Routes;
use tonic::service::RoutesBuilder;

use crate::pb;

/// Routes that answer reflection about `services` and health.
pub fn routes(services: &[&'static str]) -> Routes {
    let builder = || {
        let mut builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        for service in services {
            builder = builder.with_service_name(*service);
        }
        builder
    };
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(
            builder()
                .build_v1()
                .expect("the embedded descriptors are valid"),
        )
        .add_service(
            builder()
                .build_v1alpha()
                .expect("the embedded descriptors are valid"),
        );
    routes.routes()
}
