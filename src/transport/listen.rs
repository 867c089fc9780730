//! Sockets to listen on: opened once, with errors that name address and cause.
//!
//! No SO_REUSEPORT: with it a second process could take the same port without a word.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs},
    os::unix::{
        fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::transport::error::TransportError;

/// Connections that may wait to be accepted; a mesh that restarts comes back at once.
const BACKLOG: i32 = 1024;

/// A bound socket. The port is taken and the backlog fills from here on.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: Bound,
    address: String,
}

/// What is bound.
#[derive(Debug)]
pub(super) enum Bound {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A socket in the file system.
    Unix(UnixListener, SocketFile),
}

/// Removes the socket from the file system when dropped; holds the lock until then.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    _lock: File,
}

impl Listener {
    /// Opens what the text names: `unix:/path`, `host:port`, `[::]:port`; port 0 takes any.
    ///
    /// # Errors
    /// When the text is no address or the system refuses it.
    pub fn parse(address: &str) -> Result<Self, TransportError> {
        match address.strip_prefix("unix:") {
            Some(path) => Self::unix(Path::new(path.strip_prefix("//").unwrap_or(path))),
            None => Self::tcp(address),
        }
    }

    /// Opens a TCP port. `[::]` and an empty host listen on both IP stacks.
    ///
    /// # Errors
    /// When the address cannot be read or resolved, or the port is taken.
    pub fn tcp(address: &str) -> Result<Self, TransportError> {
        let place = resolve(address)?;
        let socket = match bind_tcp(place) {
            // A host without IPv6 still serves the other stack.
            Err(error) if place.ip().is_unspecified() && no_ipv6(&error) => {
                bind_tcp((Ipv4Addr::UNSPECIFIED, place.port()).into())
            }
            other => other,
        };
        let bound = socket.and_then(|socket| {
            let local = socket.local_addr()?;
            Ok((socket, local))
        });
        let (socket, local) = bound.map_err(|source| {
            let address = address.to_owned();
            if source.kind() == io::ErrorKind::AddrInUse {
                TransportError::Taken {
                    address,
                    port: place.port(),
                    source,
                }
            } else {
                TransportError::Bind { address, source }
            }
        })?;
        Ok(Self {
            socket: Bound::Tcp(socket),
            address: local.to_string(),
        })
    }

    /// Opens a Unix socket that only this user can reach (0600).
    ///
    /// A socket that a dead process left behind is replaced; a lock file beside it tells the dead
    /// from the living.
    ///
    /// # Errors
    /// When another process serves it, when something else is in the way, or the path is too long.
    pub fn unix(path: &Path) -> Result<Self, TransportError> {
        let refuse = |source| TransportError::Bind {
            address: format!("unix:{}", path.display()),
            source,
        };
        if path.file_name().is_none() {
            let text = "a socket needs a path, such as unix:/run/me/agent.sock";
            return Err(refuse(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        let lock = lock_beside(path)?;
        if let Ok(found) = fs::symlink_metadata(path)
            && !found.file_type().is_socket()
        {
            return Err(TransportError::NotASocket(path.to_owned()));
        }
        // Bound under another name and renamed once it is private: nobody meets it open.
        let unready = beside(path, ".new");
        remove(&unready).map_err(refuse)?;
        let socket = UnixListener::bind(&unready).map_err(refuse)?;
        let ready = fs::set_permissions(&unready, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&unready, path))
            .and_then(|()| socket.set_nonblocking(true));
        ready.map_err(refuse)?;
        Ok(Self {
            socket: Bound::Unix(
                socket,
                SocketFile {
                    path: path.to_owned(),
                    _lock: lock,
                },
            ),
            address: format!("unix:{}", path.display()),
        })
    }

    /// Where it listens, in gRPC's naming syntax: `127.0.0.1:7600`, `[::]:7643`, `unix:/path`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The TCP port, also where 0 was asked for; none on a Unix socket.
    pub fn port(&self) -> Option<u16> {
        self.local().map(|local| local.port())
    }

    /// The TCP address; none on a Unix socket.
    pub fn local(&self) -> Option<SocketAddr> {
        match &self.socket {
            Bound::Tcp(socket) => socket.local_addr().ok(),
            Bound::Unix(..) => None,
        }
    }

    /// Refuses an address that other machines could reach.
    ///
    /// # Errors
    /// `NotLoopback` for such an address.
    pub fn only_this_machine(self) -> Result<Self, TransportError> {
        match self.local() {
            Some(local) if !local.ip().is_loopback() => {
                Err(TransportError::NotLoopback(self.address))
            }
            Some(_) | None => Ok(self),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket stays behind");
        }
    }
}

fn resolve(address: &str) -> Result<SocketAddr, TransportError> {
    let full = match address.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => address.to_owned(),
    };
    let refuse = |why: String| TransportError::Address {
        address: address.to_owned(),
        why,
    };
    let mut places = full
        .to_socket_addrs()
        .map_err(|error| refuse(error.to_string()))?;
    places
        .next()
        .ok_or_else(|| refuse("the name has no address".into()))
}

fn bind_tcp(place: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(place),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if place.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A restart need not wait for old connections in TIME_WAIT; a live listener still refuses us.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&place.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT without the libc crate: Linux 97, macOS 47.
    matches!(error.raw_os_error(), Some(97 | 47)) || error.kind() == io::ErrorKind::AddrNotAvailable
}

fn lock_beside(path: &Path) -> Result<File, TransportError> {
    let refuse = |source| TransportError::Bind {
        address: format!("unix:{}", path.display()),
        source,
    };
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(false).mode(0o600);
    let lock = options.open(beside(path, ".lock")).map_err(refuse)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(TransportError::SocketHeld(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(refuse(source)),
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_cause() {
        let first = Listener::tcp("[::]:0").unwrap();
        let port = first.port().unwrap();
        for address in [
            format!("[::]:{port}"),
            format!(":{port}"),
            format!("127.0.0.1:{port}"),
        ] {
            let error = Listener::tcp(&address).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("port {port} of {address} is taken")),
                "{error}"
            );
        }
        drop(first);
        Listener::tcp(&format!("[::]:{port}")).unwrap();
    }

    #[test]
    fn both_stacks_reach_the_unspecified_address() {
        let listener = Listener::parse(":0").unwrap();
        let port = listener.port().unwrap();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        if listener.local().unwrap().is_ipv6() {
            std::net::TcpStream::connect(("::1", port)).unwrap();
        }
        assert!(listener.only_this_machine().is_err());
        assert!(
            Listener::parse("127.0.0.1:0")
                .unwrap()
                .only_this_machine()
                .is_ok()
        );
    }

    #[test]
    fn addresses_that_are_none_are_refused_with_the_shape() {
        for address in ["", "7643", "localhost", "127.0.0.1:70000", "unix:"] {
            assert!(Listener::parse(address).is_err(), "{address}");
        }
        let error = Listener::tcp("7643").unwrap_err().to_string();
        assert!(error.contains("`host:port`"), "{error}");
    }

    #[test]
    fn a_unix_socket_is_private_locked_and_cleaned_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attache.sock");
        let first = Listener::unix(&path).unwrap();
        assert_eq!(first.address(), format!("unix:{}", path.display()));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            Listener::unix(&path),
            Err(TransportError::SocketHeld(_))
        ));
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(first);
        assert!(!path.exists());

        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a process that died leaves its socket");
        drop(Listener::unix(&path).unwrap());

        fs::write(&path, "notes").unwrap();
        assert!(matches!(
            Listener::unix(&path),
            Err(TransportError::NotASocket(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"notes");
    }
}
