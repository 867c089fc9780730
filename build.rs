//! Compiles `proto/` and the journal's own records by protox: no `protoc` is needed on the machine.

use std::{env, fs, path::PathBuf};

/// The public contract, in the order of its imports.
const CONTRACT: &[&str] = &[
    "attache/v1/card.proto",
    "attache/v1/traffic.proto",
    "attache/v1/registry.proto",
    "attache/v1/identity.proto",
    "attache/v1/task.proto",
    "attache/v1/handler.proto",
    "attache/v1/agent.proto",
    "attache/v1/executor.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=src/task/journal/record.proto");

    let mut contract = protox::Compiler::new(["proto"])?;
    contract.include_source_info(true).include_imports(true);
    contract.open_files(CONTRACT)?;
    fs::write(
        out.join("attache.bin"),
        contract.encode_file_descriptor_set(),
    )?;

    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".attache.v1.Part.raw")
        // Large and rare among small ones: what carries them would be as large with every message.
        .boxed(".attache.v1.ExecuteRequest.step.start")
        .boxed(".attache.v1.TaskUpdate.update.task")
        .boxed(".attache.v1.Task.callback")
        .boxed(".attache.v1.Task.question")
        .boxed(".attache.v1.AttachResponse.say.work")
        .codec_path("crate::pb::codec::Protobuf")
        .compile_fds(contract.file_descriptor_set())?;

    let mut journal = protox::Compiler::new(["proto", "src/task/journal"])?;
    journal.include_source_info(true).include_imports(true);
    journal.open_files(CONTRACT)?.open_files(["record.proto"])?;
    let journal_out = out.join("journal");
    fs::create_dir_all(&journal_out)?;
    tonic_prost_build::configure()
        .out_dir(journal_out)
        .build_client(false)
        .build_server(false)
        .extern_path(".attache.v1", "crate::pb")
        .compile_fds(journal.file_descriptor_set())?;
    Ok(())
}
