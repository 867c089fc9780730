//! HAProxy as a sidecar: HTTP/2 on both sides, windows as ours, one thread, nothing logged.

use super::Side;

pub(super) fn configuration(side: &Side<'_>) -> String {
    let certs = side.certs.display();
    let (listen, upstream) = (side.listen, side.upstream);
    let tls = "ssl-min-ver TLSv1.3 alpn h2";
    let (bind, server) = if side.first {
        (
            format!("bind {listen} proto h2"),
            format!(
                "server u {upstream} ssl crt {certs}/a.both verify required ca-file {certs}/ca.pem sni str(localhost) verifyhost localhost {tls} pool-max-conn -1"
            ),
        )
    } else {
        (
            format!(
                "bind {listen} ssl crt {certs}/b.both ca-file {certs}/ca.pem verify required {tls}"
            ),
            format!("server u {upstream} proto h2"),
        )
    };
    format!(
        "global
  nbthread 1
  tune.h2.max-concurrent-streams 2048
  tune.h2.initial-window-size 1048576
  maxconn 4096
defaults
  mode http
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  http-reuse always
  no log
frontend f
  {bind}
  default_backend b
backend b
  {server}
"
    )
}
