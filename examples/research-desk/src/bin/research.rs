//! The agent `research`: serves `research.answer`, and delegates the search to who can do it.

use research_desk::research::Research;
use research_desk::serve;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    serve::log();
    serve::serve(Research::new(serve::sidecar()?)).await
}
