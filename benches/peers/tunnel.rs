//! The limit: a pair that copies bytes over mutual TLS 1.3 and does no HTTP/2 work at all.

use std::{net::SocketAddr, path::Path, sync::Arc};

use attache::runtime::Nursery;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Outcome;

/// Bytes that are read and copied at once, as our own connections do.
const BUFFER: usize = 64 << 10;

/// Serves one side for ever: the caller's (`first`) takes plaintext, the other one TLS.
pub(crate) async fn serve(
    first: bool,
    listen: SocketAddr,
    to: SocketAddr,
    certs: &Path,
) -> Outcome<()> {
    let nursery = Nursery::here();
    let listener = TcpListener::bind(listen).await?;
    let (connector, acceptor) = (connector(certs)?, acceptor(certs)?);
    loop {
        let (near, _) = listener.accept().await?;
        let (connector, acceptor) = (connector.clone(), acceptor.clone());
        nursery.adopt("tunnel", async move {
            let passing = async {
                near.set_nodelay(true)?;
                let far = TcpStream::connect(to).await?;
                far.set_nodelay(true)?;
                if first {
                    let far = BufReader::with_capacity(BUFFER, far);
                    let name = ServerName::try_from("localhost").expect("a DNS name");
                    pass(near, connector.connect(name, far).await?).await
                } else {
                    let near = BufReader::with_capacity(BUFFER, near);
                    pass(acceptor.accept(near).await?, far).await
                }
            };
            // Whoever only looked whether somebody listens ends here, too.
            drop(passing.await);
        });
    }
}

async fn pass(
    mut near: impl AsyncRead + AsyncWrite + Unpin,
    mut far: impl AsyncRead + AsyncWrite + Unpin,
) -> std::io::Result<()> {
    copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await?;
    Ok(())
}

fn connector(certs: &Path) -> Outcome<TlsConnector> {
    let (chain, key) = own(certs, "a")?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(certs)?)
        .with_client_auth_cert(chain, key)?;
    Ok(TlsConnector::from(Arc::new(config)))
}

fn acceptor(certs: &Path) -> Outcome<TlsAcceptor> {
    let (chain, key) = own(certs, "b")?;
    let roots = Arc::new(roots(certs)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build()?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn own(
    certs: &Path,
    name: &str,
) -> Outcome<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(certs.join(format!("{name}.pem")))?;
    let key = PrivateKeyDer::from_pem_file(certs.join(format!("{name}.key")))?;
    Ok((chain.collect::<Result<_, _>>()?, key))
}

fn roots(certs: &Path) -> Outcome<RootCertStore> {
    let mut store = RootCertStore::empty();
    store.add(CertificateDer::from_pem_file(certs.join("ca.pem"))?)?;
    Ok(store)
}
