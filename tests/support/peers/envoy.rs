//! Envoy as a sidecar: HTTP/2 on both sides, windows as ours, one route, nothing logged or added.

use super::Side;

pub(super) fn configuration(side: &Side<'_>) -> String {
    let certs = side.certs.display();
    let common = |own: &str, other: &str| {
        format!(
            r#"alpn_protocols: [h2],
            tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}},
            tls_certificates: [{{certificate_chain: {{filename: "{certs}/{own}.pem"}}, private_key: {{filename: "{certs}/{own}.key"}}}}],
            validation_context: {{trusted_ca: {{filename: "{certs}/ca.pem"}}, match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "spiffe://mesh.local/agent/{other}"}}}}]}}"#
        )
    };
    let socket = |context: &str, more: &str, common: &str| {
        format!(
            r#"transport_socket: {{name: tls, typed_config: {{
            "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}, {more},
            common_tls_context: {{{common}}}}}}}"#
        )
    };
    let (downstream, upstream) = if side.first {
        let tls = socket("UpstreamTlsContext", "sni: localhost", &common("a", "b"));
        (String::new(), tls)
    } else {
        let more = "require_client_certificate: true";
        let tls = socket("DownstreamTlsContext", more, &common("b", "a"));
        (tls, String::new())
    };
    let (listen, to) = (side.listen.port(), side.upstream.port());
    written((listen, &downstream), (to, &upstream))
}

/// The whole file, from ports and TLS of both ends.
fn written((listen, downstream): (u16, &str), (to, upstream): (u16, &str)) -> String {
    let http2 = "http2_protocol_options: {max_concurrent_streams: 2048, initial_stream_window_size: 1048576, initial_connection_window_size: 4194304}";
    format!(
        r#"
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: i
          codec_type: HTTP2
          generate_request_id: false
          access_log: []
          {http2}
          stream_idle_timeout: 0s
          route_config:
            virtual_hosts:
            - name: v
              domains: ["*"]
              routes: [{{match: {{prefix: "/"}}, route: {{cluster: u, timeout: 0s}}}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
      {downstream}
  clusters:
  - name: u
    type: STATIC
    connect_timeout: 2s
    circuit_breakers: {{thresholds: [{{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000, max_retries: 3}}]}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{{http2}}}
    load_assignment: {{cluster_name: u, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {to}}}}}}}}}]}}]}}
    {upstream}
"#
    )
    .replace("      \n", "\n")
}
