//! What every gRPC listener of ours has: health by `grpc.health.v1`, and reflection of what is
//! really served there, in both versions that clients ask for.

use tonic::service::Routes;
use tonic::service::RoutesBuilder;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::pb;

/// Health of a process, to be turned off when it drains.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
    services: &'static [&'static str],
}

impl Health {
    /// All services stop taking new calls.
    pub async fn stop(&self) {
        for service in self.services.iter().copied().chain([""]) {
            self.reporter
                .set_service_status(service, ServingStatus::NotServing)
                .await;
        }
    }
}

/// The health service, with `services` and the process itself SERVING.
pub async fn health(services: &'static [&'static str]) -> (Health, HealthServer<HealthService>) {
    let reporter = HealthReporter::new();
    for service in services.iter().copied().chain([""]) {
        reporter
            .set_service_status(service, ServingStatus::Serving)
            .await;
    }
    let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    (Health { reporter, services }, service)
}

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
