//! Which URLs a sidecar may call: what its configuration names, and of that what is public unless it
//! says more.

use std::net::IpAddr;

use crate::domain::{Fault, Reason};

use super::address::{Network, Reach, reach};
use super::url::Url;

/// Port of https, where a rule names none.
const HTTPS: u16 = 443;
/// Most rules of a sidecar, and most ports and networks of a rule.
const RULES_MAX: usize = 256;

/// Hosts that may be called; none at first.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    rules: Vec<Rule>,
}

/// One entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    host: Host,
    ports: Vec<u16>,
    private: bool,
    networks: Vec<Network>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// Just this one.
    Exact(String),
    /// Any name that ends so: `*.example.com`, with the point.
    Below(String),
}

impl Rule {
    /// An entry as it is written down: a name, `*.` and a name, or an address; ports (none: 443);
    /// whether private addresses are fine; which networks are, whatever they are.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        host: &str,
        ports: &[u16],
        private: bool,
        networks: &[String],
    ) -> Result<Self, String> {
        let (below, name) = match host.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, host),
        };
        let bracketed = if name.contains(':') {
            format!("https://[{name}]/")
        } else {
            format!("https://{name}/")
        };
        let plain = Url::parse(&bracketed)
            .ok()
            .filter(|url| url.path() == "/" && url.host() == name.to_ascii_lowercase());
        let Some(url) = plain else {
            return Err(format!(
                "{host:?} is no host: write a name, *. and a name, or an address, without port or path"
            ));
        };
        if ports.len() > RULES_MAX || networks.len() > RULES_MAX || ports.contains(&0) {
            return Err(format!(
                "at most {RULES_MAX} ports from 1 on, and as many networks"
            ));
        }
        let networks = networks.iter().map(|text| text.parse());
        Ok(Self {
            host: if below {
                Host::Below(format!(".{}", url.host()))
            } else {
                Host::Exact(url.host().to_owned())
            },
            ports: if ports.is_empty() {
                vec![HTTPS]
            } else {
                ports.to_vec()
            },
            private,
            networks: networks.collect::<Result<_, _>>()?,
        })
    }

    fn is_for(&self, url: &Url) -> bool {
        let host = match &self.host {
            Host::Exact(name) => name == url.host(),
            Host::Below(end) => url.host().len() > end.len() && url.host().ends_with(end.as_str()),
        };
        host && self.ports.contains(&url.port())
    }

    fn reaches(&self, ip: IpAddr) -> bool {
        let named = || self.networks.iter().any(|network| network.has(ip));
        match reach(ip) {
            Reach::Public => true,
            Reach::Private => self.private || named(),
            Reach::Special => named(),
            Reach::Never => false,
        }
    }
}

impl Allowed {
    /// What these rules allow.
    ///
    /// # Errors
    /// When there are too many.
    pub fn new(rules: Vec<Rule>) -> Result<Self, String> {
        if rules.len() > RULES_MAX {
            return Err(format!("at most {RULES_MAX} entries"));
        }
        Ok(Self { rules })
    }

    /// Whether nothing is allowed.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether the URL may be called, as far as it says itself where it leads.
    ///
    /// # Errors
    /// PERMISSION_DENIED, naming the key of the configuration.
    pub fn check(&self, url: &Url) -> Result<(), Fault> {
        let refuse = |text: String| {
            let fault = Fault::new(Reason::PermissionDenied, text);
            Err(Fault {
                field: Some("spec.options.callback.url".into()),
                ..fault
            })
        };
        let host = url.host();
        if !self.rules.iter().any(|rule| rule.is_for(url)) {
            return refuse(format!(
                "this sidecar calls no URL at {host} port {}: its configuration has to name them in callbacks.allow; an agent of the mesh can be called back without that",
                url.port()
            ));
        }
        match host.parse() {
            Ok(ip) if !self.reaches(url, ip) => refuse(format!(
                "{host} is not a public address: set allow_private or networks of its entry in callbacks.allow of this sidecar"
            )),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether the URL may be called at this address.
    pub fn reaches(&self, url: &Url, ip: IpAddr) -> bool {
        let mut rules = self.rules.iter().filter(|rule| rule.is_for(url));
        rules.any(|rule| rule.reaches(ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn allowed() -> Allowed {
        let rule = |host: &str, ports: &[u16], private, networks: &[&str]| {
            let networks: Vec<_> = networks.iter().map(|text| (*text).to_owned()).collect();
            Rule::new(host, ports, private, &networks).unwrap()
        };
        Allowed::new(vec![
            rule("Hooks.example", &[], false, &[]),
            rule("*.tools.example", &[443, 8443], false, &[]),
            rule("inner.example", &[], true, &[]),
            rule(
                "link.example",
                &[],
                false,
                &["169.254.0.0/16", "::ffff:0:0/96"],
            ),
            rule("127.0.0.1", &[], false, &[]),
            rule("::1", &[], true, &[]),
        ])
        .unwrap()
    }

    #[test]
    fn only_listed_hosts_and_ports_are_called_and_the_refusal_names_the_key() {
        for (text, fits) in [
            ("https://hooks.example/x", true),
            ("https://HOOKS.example./x", true),
            ("https://hooks.example:8443/x", false),
            ("https://hooks.example.evil/x", false),
            ("https://xhooks.example/x", false),
            ("https://a.tools.example:8443/", true),
            ("https://a.b.tools.example/", true),
            ("https://tools.example/", false),
            ("https://.tools.example/", false),
            ("https://eviltools.example/", false),
            ("https://127.0.0.1/", false),
            ("https://127.1/", false),
            ("https://[::1]/", true),
            ("https://8.8.8.8/", false),
        ] {
            let checked = allowed().check(&url(text));
            assert_eq!(checked.is_ok(), fits, "{text}: {checked:?}");
            if let Err(fault) = checked {
                assert_eq!(fault.reason, Reason::PermissionDenied);
                assert!(fault.text.contains("callbacks.allow"), "{fault}");
            }
        }
        let none = Allowed::default().check(&url("https://hooks.example/"));
        assert_eq!(none.unwrap_err().reason, Reason::PermissionDenied);
    }

    #[test]
    fn addresses_that_are_not_public_have_to_be_asked_for() {
        for (host, address, fits) in [
            ("hooks.example", "8.8.8.8", true),
            ("hooks.example", "127.0.0.1", false),
            ("hooks.example", "169.254.169.254", false),
            ("inner.example", "10.0.0.1", true),
            ("inner.example", "127.0.0.1", true),
            ("inner.example", "fd00::1", true),
            ("inner.example", "169.254.169.254", false),
            ("inner.example", "::ffff:10.0.0.1", false),
            ("inner.example", "64:ff9b::a00:1", false),
            ("inner.example", "2002:a00:1::", false),
            ("inner.example", "0.0.0.0", false),
            ("inner.example", "224.0.0.1", false),
            ("link.example", "169.254.169.254", true),
            ("link.example", "::ffff:10.0.0.1", true),
            ("link.example", "10.0.0.1", false),
            ("other.example", "8.8.8.8", false),
        ] {
            let url = url(&format!("https://{host}/"));
            let reached = allowed().reaches(&url, address.parse().unwrap());
            assert_eq!(reached, fits, "{host} {address}");
        }
    }

    #[test]
    fn entries_that_are_no_hosts_are_refused() {
        for host in [
            "",
            "*",
            "*.",
            "https://a.example",
            "a.example/x",
            "a.example:443",
            "a b",
        ] {
            assert!(Rule::new(host, &[], false, &[]).is_err(), "{host:?}");
        }
        assert!(Rule::new("a.example", &[0], false, &[]).is_err());
        assert!(Rule::new("a.example", &[], false, &["10".into()]).is_err());
    }
}
