//! The door for endpoints: `host:port` of one machine that peers can dial.
//!
//! Pure. Refuses what reaches a machine's own services, everybody, or nobody.

use std::net::{IpAddr, SocketAddr};

use crate::domain::ids::LABEL_MAX;

const LOOPBACK: &str = "a loopback address is taken only by a mesh on one machine";

/// Addresses that reach another machine's metadata service, everybody, or nobody, are refused:
/// peers dial what stands here.
pub(super) fn check(endpoint: &str, loopback: bool) -> Result<(), &'static str> {
    const SHAPE: &str = "host:port, such as 10.0.0.7:7643, [fd00::7]:7643 or a.example:7643";
    if let Ok(address) = endpoint.parse::<SocketAddr>() {
        if address.port() == 0 {
            return Err(SHAPE);
        }
        return check_address(address.ip(), loopback);
    }
    let (host, port) = endpoint.rsplit_once(':').ok_or(SHAPE)?;
    if port.parse::<u16>().map_or(true, |port| port == 0) || port.starts_with('+') {
        return Err(SHAPE);
    }
    let label = |part: &str| {
        (1..=LABEL_MAX).contains(&part.len())
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A host that ends in a number is an address in disguise (0x7f.1, 127.1).
    let last = host.rsplit('.').next().unwrap_or_default();
    let numeric = last.starts_with(|c: char| c.is_ascii_digit());
    if host.len() > 253 || !host.split('.').all(label) || numeric {
        return Err(SHAPE);
    }
    if host.eq_ignore_ascii_case("localhost") && !loopback {
        return Err(LOOPBACK);
    }
    Ok(())
}

fn check_address(address: IpAddr, loopback: bool) -> Result<(), &'static str> {
    let address = address.to_canonical();
    if address.is_loopback() && !loopback {
        return Err(LOOPBACK);
    }
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() || address.is_multicast() || link_local {
        return Err("not an address of one machine that peers can dial");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses_of_one_machine() {
        for (endpoint, outside, at_home) in [
            ("10.0.0.7:7643", true, true),
            ("[fd00::7]:7643", true, true),
            ("a.example:7643", true, true),
            ("agent_1:7643", true, true),
            ("127.0.0.1:7643", false, true),
            ("[::1]:7643", false, true),
            ("[::ffff:127.0.0.1]:7643", false, true),
            ("localhost:7643", false, true),
            ("169.254.169.254:80", false, false),
            ("[::ffff:169.254.169.254]:80", false, false),
            ("[fe80::1]:80", false, false),
            ("0.0.0.0:7643", false, false),
            ("[::]:7643", false, false),
            ("224.0.0.1:7643", false, false),
            ("255.255.255.255:7643", false, false),
            ("127.1:7643", false, false),
            ("0x7f000001:7643", false, false),
            ("10.0.0.7", false, false),
            ("10.0.0.7:0", false, false),
            ("a.example:99999", false, false),
            ("a.example:+1", false, false),
            ("unix:/run/x", false, false),
            ("http://a:1", false, false),
            (":7643", false, false),
        ] {
            let closed = check(endpoint, false).is_ok();
            assert_eq!(closed, outside, "{endpoint}");
            assert_eq!(check(endpoint, true).is_ok(), at_home, "{endpoint}");
        }
    }
}
