//! Where a bench's calls go, and where its answers come from: addresses, sockets and TLS.

use std::{io, path::Path, sync::Arc, time::Duration};

use http::uri::Authority;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::args::{BenchArgs, TlsArgs};
use crate::cli::exit::{Exit, Failed};
use crate::domain::SpiffeId;
use crate::identity::{Credentials, Expect, Svid};

/// For a name to be resolved, TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(10);
/// TLS by itself asks the system for 4 KiB at a time.
pub(super) const READ_BUFFER: usize = 64 * 1024;
const ALPN: &[u8] = b"h2";

/// Bytes both ways.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// host:port
    Tcp(String),
    /// A path.
    Unix(String),
}

/// Where calls go.
#[derive(Clone)]
pub(super) struct Target {
    place: Place,
    /// What requests say whom they are for.
    pub(super) authority: Authority,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Place {
    /// `unix:/path`, or a host with its port.
    pub(super) fn parse(text: &str) -> Result<Self, Failed> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return Ok(Self::Unix(path.to_owned()));
        }
        let authority: Option<Authority> = text.parse().ok();
        if authority.is_some_and(|authority| authority.port_u16().is_some()) {
            return Ok(Self::Tcp(text.to_owned()));
        }
        let text = format!("{text:?} is no address: write HOST:PORT or unix:/PATH");
        Err(Failed::usage(text))
    }
}

impl Target {
    /// What the arguments name.
    ///
    /// # Errors
    /// When it is no address, or a file of its TLS cannot be used.
    pub(super) fn of(url: &str, args: &BenchArgs) -> Result<Self, Failed> {
        let (place, secure) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (Place::parse(rest.trim_end_matches('/'))?, true),
            (None, Some(rest)) => (Place::parse(rest.trim_end_matches('/'))?, false),
            (None, None) if url.starts_with("unix:") => (Place::parse(url)?, false),
            (None, None) => {
                let text = format!(
                    "{url:?} is no target: write http://HOST:PORT, https://HOST:PORT or unix:/PATH"
                );
                return Err(Failed::usage(text));
            }
        };
        // Servers refuse a path as authority.
        let own = match &place {
            Place::Tcp(address) => address.as_str(),
            Place::Unix(_) => "localhost",
        };
        let authority = args.authority.as_deref().unwrap_or(own);
        let authority: Authority = authority.parse().map_err(|_| {
            Failed::usage(format!(
                "{authority:?} is no authority: write HOST or HOST:PORT"
            ))
        })?;
        let tls = match secure {
            true => Some(secured(own, &args.tls)?),
            false => None,
        };
        Ok(Self {
            place,
            authority,
            tls,
        })
    }

    /// What requests say they came by.
    pub(super) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// What the system or the other side refused.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection within 10 s");
        timeout(CONNECT, self.dial()).await.map_err(|_| late())?
    }

    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        let plain: Box<dyn Stream> = match &self.place {
            Place::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Place::Tcp(address) => {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                Box::new(tcp)
            }
        };
        let Some((connector, name)) = &self.tls else {
            return Ok(plain);
        };
        let plain = BufReader::with_capacity(READ_BUFFER, plain);
        let tls = connector.connect(name.clone(), plain).await?;
        if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::other("it does not speak HTTP/2 (ALPN h2)"));
        }
        Ok(Box::new(tls))
    }
}

fn secured(own: &str, args: &TlsArgs) -> Result<(TlsConnector, ServerName<'static>), Failed> {
    let host = own.rsplit_once(':').map_or(own, |(host, _)| host);
    let name = args.server_name.as_deref().unwrap_or(host);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(name.to_owned()).map_err(|_| {
        Failed::usage(format!(
            "{name:?} is no server name; set it with --server-name"
        ))
    })?;
    Ok((TlsConnector::from(client_config(args)?), name))
}

fn client_config(args: &TlsArgs) -> Result<Arc<ClientConfig>, Failed> {
    if let Some(dir) = &args.identity {
        let peer = args.peer.as_deref().ok_or_else(|| {
            Failed::usage("--identity needs --peer: the SPIFFE id that the server must prove")
        })?;
        let id: SpiffeId = peer.parse().map_err(Failed::usage)?;
        return Ok(member(dir)?.client_config(Expect::Member(id)));
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(Failed::fault)?
        .with_root_certificates(roots(args.ca.as_deref())?);
    let mut config = match own(args)? {
        Some((chain, key)) => config
            .with_client_auth_cert(chain, key)
            .map_err(Failed::usage)?,
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// TLS of the answering half; `None`: plaintext.
///
/// # Errors
/// When a file cannot be used.
pub(super) fn server_config(args: &TlsArgs) -> Result<Option<Arc<ServerConfig>>, Failed> {
    if let Some(dir) = &args.identity {
        return Ok(Some(member(dir)?.server_config()));
    }
    let Some((chain, key)) = own(args)? else {
        return Ok(None);
    };
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(Failed::fault)?;
    let config = match &args.ca {
        Some(ca) => {
            let roots = Arc::new(roots(Some(ca))?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            config.with_client_cert_verifier(verifier.build().map_err(Failed::usage)?)
        }
        None => config.with_no_client_auth(),
    };
    let mut config = config.with_single_cert(chain, key).map_err(Failed::usage)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Some(Arc::new(config)))
}

fn member(dir: &Path) -> Result<Credentials, Failed> {
    let svid = Svid::load(dir).map_err(|error| {
        let text = format!("no certificate to speak with in {}: {error}", dir.display());
        Failed::new(Exit::Refused, text)
    })?;
    Ok(Credentials::new(svid))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn own(args: &TlsArgs) -> Result<Option<Own>, Failed> {
    let (Some(cert), Some(key)) = (&args.cert, &args.key) else {
        return Ok(None);
    };
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
    Ok(Some((certificates(cert)?, key)))
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, Failed> {
    let mut store = RootCertStore::empty();
    let Some(ca) = ca else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(store);
    };
    for root in certificates(ca)? {
        store.add(root).map_err(|error| unusable(ca, &error))?;
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failed> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Failed {
    Failed::usage(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Verb};

    fn target(arguments: &str) -> Result<Target, Failed> {
        let words = ["attache", "bench"].into_iter().chain(arguments.split(' '));
        let Verb::Bench(args) = Cli::parse_from(words).verb else {
            panic!("not bench")
        };
        Target::of(args.target.as_deref().unwrap(), &args)
    }

    #[test]
    fn targets_say_where_by_what_and_for_whom() {
        for (arguments, place, scheme, authority) in [
            ("http://a:1", Place::Tcp("a:1".into()), "http", "a:1"),
            ("http://a:1/", Place::Tcp("a:1".into()), "http", "a:1"),
            (
                "https://[::1]:1",
                Place::Tcp("[::1]:1".into()),
                "https",
                "[::1]:1",
            ),
            ("unix:/x", Place::Unix("/x".into()), "http", "localhost"),
            ("unix:///x", Place::Unix("/x".into()), "http", "localhost"),
            (
                "unix:/x --authority y",
                Place::Unix("/x".into()),
                "http",
                "y",
            ),
        ] {
            let found = target(arguments).unwrap_or_else(|error| panic!("{arguments}: {error}"));
            assert_eq!(found.place, place, "{arguments}");
            assert_eq!(found.scheme(), scheme, "{arguments}");
            assert_eq!(found.authority.as_str(), authority, "{arguments}");
        }
        for arguments in [
            "a:1",
            "http://a",
            "ftp://a:1",
            "https://a:1 --server-name -",
        ] {
            assert!(target(arguments).is_err(), "{arguments}");
        }
    }
}
