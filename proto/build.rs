//! Generates Rust from the .proto files with no `protoc`: protox parses them, prost and tonic write the code.

use std::{
    collections::BTreeSet,
    env,
    error::Error,
    fmt::{self, Write as _},
    fs,
    path::PathBuf,
};

use prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor};
use protox::Compiler;

/// One published contract: the file that declares its services and messages, the folder below `OUT_DIR` that its code
/// goes to, and whether its services are gRPC. NRI runs on ttrpc, so there only the messages are generated.
struct Contract {
    file: &'static str,
    folder: &'static str,
    grpc: bool,
}

const CONTRACTS: [Contract; 7] = [
    Contract { file: "csi/v1/csi.proto", folder: "csi", grpc: true },
    Contract { file: "deviceplugin/v1beta1/deviceplugin.proto", folder: "deviceplugin", grpc: true },
    Contract { file: "pluginregistration/v1/pluginregistration.proto", folder: "pluginregistration", grpc: true },
    Contract { file: "podresources/v1/podresources.proto", folder: "podresources", grpc: true },
    Contract { file: "cri/v1/cri.proto", folder: "cri", grpc: true },
    Contract { file: "nri/v1alpha1/nri.proto", folder: "nri", grpc: false },
    Contract { file: "ttrpc/ttrpc.proto", folder: "ttrpc", grpc: false },
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let mut all = Compiler::new(["."])?;
    all.include_imports(true);
    for contract in &CONTRACTS {
        println!("cargo::rerun-if-changed={}", contract.file);
        all.open_file(contract.file)?;
    }
    // Only the encoded form keeps custom options such as csi_secret: prost's own descriptor types drop them.
    let descriptors = all.encode_file_descriptor_set();
    fs::write(out_dir.join("descriptors.bin"), &descriptors)?;
    let pool = DescriptorPool::decode(descriptors.as_slice())?;

    for contract in &CONTRACTS {
        // A folder each: Kubernetes names packages "v1" and "v1beta1", and prost names files after packages.
        let folder = out_dir.join(contract.folder);
        fs::create_dir_all(&folder)?;
        let messages = messages_with_secrets(&pool, contract.file);
        let mut compiler = Compiler::new(["."])?;
        compiler.include_imports(true).include_source_info(true).open_file(contract.file)?;
        tonic_prost_build::configure()
            .out_dir(&folder)
            .btree_map(".")
            .build_client(contract.grpc)
            .build_server(contract.grpc)
            .skip_debug(messages.iter().map(|message| format!(".{}", message.full_name())))
            .compile_fds(compiler.file_descriptor_set())?;
        fs::write(folder.join("redacted.rs"), redacted_debug(&messages)?)?;
    }
    Ok(())
}

/// The file's messages that have a field marked `csi_secret`.
fn messages_with_secrets(pool: &DescriptorPool, file: &str) -> Vec<MessageDescriptor> {
    pool.all_messages()
        .filter(|message| message.parent_file().name() == file)
        .filter(|message| message.fields().any(|field| is_secret(&field)))
        .collect()
}

fn is_secret(field: &FieldDescriptor) -> bool {
    let Some(mark) = field.parent_pool().get_extension_by_name("csi.v1.csi_secret") else { return false };
    field.options().get_extension(&mark).as_bool() == Some(true)
}

/// A `Debug` for each message that prints every field but the secret ones, so that no log line can leak them.
fn redacted_debug(messages: &[MessageDescriptor]) -> Result<String, fmt::Error> {
    let mut code = String::new();
    for message in messages {
        let name = message.name();
        writeln!(code, "impl ::core::fmt::Debug for {name} {{")?;
        writeln!(code, "    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{")?;
        writeln!(code, "        f.debug_struct({name:?})")?;
        let mut oneofs = BTreeSet::new();
        for field in message.fields() {
            let (name, value) = match field.containing_oneof().filter(|oneof| !oneof.is_synthetic()) {
                Some(oneof) if !oneofs.insert(oneof.name().to_owned()) => continue,
                Some(oneof) => (oneof.name().to_owned(), format!("&self.{}", oneof.name())),
                None if is_secret(&field) => (field.name().to_owned(), r#"&"[redacted]""#.to_owned()),
                None => (field.name().to_owned(), format!("&self.{}", field.name())),
            };
            writeln!(code, "            .field({name:?}, {value})")?;
        }
        writeln!(code, "            .finish()\n    }}\n}}")?;
    }
    Ok(code)
}
