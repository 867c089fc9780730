//! The agent `search`: `search FOLDER` serves `search.passages` over the folder's documents.

use std::path::PathBuf;

use anyhow::Context as _;
use research_desk::search::{self, Index, Search};
use research_desk::serve;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    serve::log();
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.context("usage: search FOLDER (the documents to search)")?;
    let documents = search::read(&folder)
        .with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let index = Index::build(&documents)?;
    tracing::info!(
        folder = %folder.display(),
        files = documents.len(),
        passages = index.len(),
        "indexed"
    );
    serve::serve(Search::new(index)).await
}
