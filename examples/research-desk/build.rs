//! Generates client and server code from the mesh's contract by protox: no `protoc` is needed.

/// What an agent sees of the contract, in the order of its imports.
const CONTRACT: &[&str] = &[
    "attache/v1/card.proto",
    "attache/v1/registry.proto",
    "attache/v1/task.proto",
    "attache/v1/agent.proto",
    "attache/v1/handler.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../../proto");
    let mut contract = protox::Compiler::new(["../../proto"])?;
    contract.include_source_info(true).include_imports(true);
    contract.open_files(CONTRACT)?;
    // An agent writes the methods it needs; the mesh takes UNIMPLEMENTED for the others.
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .build_transport(false)
        .compile_fds(contract.file_descriptor_set())?;
    Ok(())
}
