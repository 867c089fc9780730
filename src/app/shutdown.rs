//! When a process is asked to end: by signal, or since its parent is gone.

use std::os::fd::AsFd;

use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    signal::unix::{Signal, SignalKind, signal},
};

use crate::runtime::{Nursery, Stop};

/// Cancels `stop` at SIGINT or SIGTERM, and at the end of standard input where that is asked for.
/// A second signal ends the process at once.
///
/// # Errors
/// When the system gives no signal handler.
pub fn listen(nursery: &Nursery, stop: Stop, until_stdin_closes: bool) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    nursery.adopt("signals", async move {
        let by_signal = tokio::select! {
            () = either(&mut interrupt, &mut terminate) => true,
            () = stdin_closed(), if until_stdin_closes => false,
        };
        tracing::info!("asked to stop: draining; a second signal ends at once");
        stop.cancel();
        if !by_signal {
            // The first signal then asks for what happens already.
            either(&mut interrupt, &mut terminate).await;
        }
        either(&mut interrupt, &mut terminate).await;
        tracing::warn!("second signal: ending at once");
        std::process::exit(130);
    });
    Ok(())
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Standard input is the pipe that the parent holds: it closes when the parent is gone, however.
async fn stdin_closed() {
    let pipe = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(pipe::Receiver::from_owned_fd);
    let mut pipe = match pipe {
        Ok(pipe) => pipe,
        Err(error) => {
            tracing::warn!(%error, "standard input is no pipe: its end is not watched");
            return std::future::pending().await;
        }
    };
    let mut ignored = [0; 64];
    while pipe.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
}
