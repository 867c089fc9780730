//! An https URL that somebody is told by: taken apart once, at the door.

use std::fmt;
use std::net::IpAddr;

/// Most bytes of a URL.
const URL_MAX: usize = 2048;
/// Most bytes of a host name, as DNS has it.
const HOST_MAX: usize = 253;
/// Port of https.
const HTTPS: u16 = 443;

/// Where a POST goes. Its path and query may be secrets: they are never shown or logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// Lower case, without brackets.
    host: String,
    port: u16,
    /// Path and query, as they were given.
    path: String,
}

impl Url {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// What is wrong with it, without any of its text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > URL_MAX {
            return Err("longer than 2048 bytes");
        }
        if text.contains('#') {
            return Err("it has a fragment: leave it out");
        }
        let uri: http::Uri = text.parse().map_err(|_| "not a URL")?;
        if uri.scheme_str() != Some("https") {
            return Err("not an https URL: nothing else is called");
        }
        let authority = uri.authority().ok_or("it names no host")?;
        if authority.as_str().contains('@') {
            return Err("it has a user name or password: put a token into its path or query");
        }
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .map_or(host, |rest| rest.trim_end_matches(']'));
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name = !host.is_empty() && host.len() <= HOST_MAX && host.chars().all(named);
        if !is_name && host.parse::<IpAddr>().is_err() {
            return Err("its host is neither a name nor an address");
        }
        let port = match &authority.as_str()[authority.host().len()..] {
            "" => Some(HTTPS),
            rest => rest.strip_prefix(':').and_then(|port| port.parse().ok()),
        };
        Ok(Self {
            host,
            port: port.filter(|port| *port > 0).ok_or("its port is none")?,
            path: match uri.path_and_query().map_or("/", |path| path.as_str()) {
                // RFC 9112: the target of a request begins with a slash.
                query if query.starts_with('?') => format!("/{query}"),
                path => path.to_owned(),
            },
        })
    }

    /// Name or address, lower case, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, 443 where none was named.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query: possibly secret.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `host:port`, as in a `Host` header and in lines that people read.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == HTTPS {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// What may be shown of it.
    pub fn shown(&self) -> String {
        let rest = if self.path == "/" { "" } else { "..." };
        format!("https://{}/{rest}", self.authority())
    }
}

/// Without what may be secret.
impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_https_url_is_taken_apart_and_shown_without_what_may_be_secret() {
        for (text, host, port, path, shown) in [
            (
                "https://a.example",
                "a.example",
                443,
                "/",
                "https://a.example/",
            ),
            (
                "https://A.Example.:8443/x?token=s",
                "a.example",
                8443,
                "/x?token=s",
                "https://a.example:8443/...",
            ),
            ("https://[::1]:9/", "::1", 9, "/", "https://[::1]:9/"),
            (
                "https://a.example?token=s",
                "a.example",
                443,
                "/?token=s",
                "https://a.example/...",
            ),
            (
                "https://10.0.0.1",
                "10.0.0.1",
                443,
                "/",
                "https://10.0.0.1/",
            ),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.host(), url.port(), url.path()), (host, port, path));
            assert_eq!(
                (url.shown().as_str(), format!("{url:?}").as_str()),
                (shown, shown)
            );
        }
    }

    #[test]
    fn what_is_no_plain_https_url_is_refused() {
        for text in [
            "",
            "http://a.example/",
            "ftp://a.example/",
            "a.example",
            "/hook",
            "https://",
            "https:///hook",
            "https://user@a.example/",
            "https://user:secret@a.example/",
            "https://a.example#top",
            "https://a.example:0/",
            "https://a.example:/",
            "https://a.example:99999/",
            "https://a example/",
            "https://[::1/",
            "https://a.example\\@b.example/",
            "HTTPS//a.example",
        ] {
            assert!(Url::parse(text).is_err(), "{text:?}");
        }
        assert!(Url::parse(&format!("https://a.example/{}", "x".repeat(URL_MAX))).is_err());
    }
}
