//! The `attache` command.

use std::process::ExitCode;

use attache::cli;
use tokio::runtime::Builder;

fn main() -> ExitCode {
    // Control work only: a process' data path has threads of its own.
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::output::Output::new(cli::args::Format::Human)
                .error(&format!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(cli::run());
    // A read of standard input may still wait in its thread: nobody needs it any more.
    runtime.shutdown_background();
    exit.into()
}
