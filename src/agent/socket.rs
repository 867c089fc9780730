//! Where an agent listens and dials: a Unix socket, or loopback. Nothing else, since nobody is
//! asked who they are.

use std::{
    fmt, fs, io, net::SocketAddr, os::unix::fs::FileTypeExt, os::unix::fs::PermissionsExt as _,
    path::PathBuf, str::FromStr,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};

use super::AgentError;

/// Bytes both ways.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// `unix:/path` or a loopback `host:port`.
#[derive(Clone, Debug)]
pub(super) enum Socket {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Socket {
    pub(super) async fn dial(&self) -> io::Result<Box<dyn Io>> {
        Ok(match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                // Nagle and delayed acknowledgements make 40 ms of every small call.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }

    pub(super) async fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Unix(path) => {
                // Only a socket that a process before left behind, never somebody's file.
                if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                    fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
                Ok(Listener::Unix(listener, path.clone()))
            }
            Self::Tcp(address) => Ok(Listener::Tcp(TcpListener::bind(address).await?)),
        }
    }
}

impl FromStr for Socket {
    type Err = AgentError;

    fn from_str(text: &str) -> Result<Self, AgentError> {
        let wrong = || AgentError::Address(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            // Both spellings of gRPC: unix:/path and unix:///path.
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() {
                Err(wrong())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let named = text.replace("localhost:", "127.0.0.1:");
        let address: SocketAddr = named.parse().map_err(|_| wrong())?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<Box<dyn Io>> {
        Ok(match self {
            Self::Unix(listener, _) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }

    /// Where it listens, with the port that the system chose.
    pub(super) fn address(&self) -> io::Result<Socket> {
        Ok(match self {
            Self::Unix(_, path) => Socket::Unix(path.clone()),
            Self::Tcp(listener) => Socket::Tcp(listener.local_addr()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_an_address() {
        for (text, read) in [
            ("unix:/run/a.sock", "unix:/run/a.sock"),
            ("unix:///run/a.sock", "unix:/run/a.sock"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("localhost:7600", "127.0.0.1:7600"),
            ("[::1]:7600", "[::1]:7600"),
        ] {
            assert_eq!(text.parse::<Socket>().unwrap().to_string(), read);
        }
        for text in [
            "",
            "unix:",
            "0.0.0.0:1",
            "[::]:1",
            "10.0.0.1:1",
            "example.org:1",
        ] {
            assert!(text.parse::<Socket>().is_err(), "{text}");
        }
    }
}
