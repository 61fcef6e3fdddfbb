//! Wire contracts: the published node-level protocols of Kubernetes as Rust types, clients and servers.
//!
//! Each module below is generated from the .proto file of the same path in this crate's folder. Those files are our
//! own writing; `tests/protocol_contracts.rs` holds them against the published ones. There is no logic here.
//!
//! Maps are `BTreeMap`s, so that what is printed or written to disk is stable. `Debug` of a CSI message prints
//! `[redacted]` for a field that the specification marks as secret.

/// All contracts as one encoded `google.protobuf.FileDescriptorSet`, with their imports and custom options
/// (`csi.v1.csi_secret`, `csi.v1.alpha_method` and the like).
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Includes generated code: the file that prost named after the package, and the redacting `Debug`s beside it.
macro_rules! generated {
    ($file:literal $(, $more:literal)*) => {
        include!(concat!(env!("OUT_DIR"), "/", $file));
        $(include!(concat!(env!("OUT_DIR"), "/", $more));)*
    };
}

/// The Container Storage Interface.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod csi {
    /// CSI 1.13.
    pub mod v1 {
        generated!("csi/csi.v1.rs", "csi/redacted.rs");
    }
}

/// The kubelet's device plugin API.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod deviceplugin {
    /// The version that every kubelet since 1.10 speaks.
    pub mod v1beta1 {
        generated!("deviceplugin/v1beta1.rs");
    }
}

/// The kubelet's plugin watcher.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod pluginregistration {
    /// Plugin registration v1.
    pub mod v1 {
        generated!("pluginregistration/pluginregistration.rs");
    }
}

/// The kubelet's record of which container got which resources.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod podresources {
    /// Podresources v1.
    pub mod v1 {
        generated!("podresources/v1.rs");
    }
}

/// The Container Runtime Interface, as far as a stand-in for the kubelet calls it.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod cri {
    /// CRI v1.
    pub mod v1 {
        generated!("cri/runtime.v1.rs");
    }
}

/// The Node Resource Interface: messages only, for it is spoken over [`ttrpc`].
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod nri {
    /// NRI v1alpha1, the era of `StateChange` and that of a method per event.
    pub mod v1alpha1 {
        generated!("nri/nri.pkg.api.v1alpha1.rs");
    }
}

/// The envelope of ttrpc: `Request` and `Response`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod ttrpc {
    generated!("ttrpc/ttrpc.rs");
}

/// Google's types that a contract above refers to.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod google {
    /// The status of a ttrpc response.
    pub mod rpc {
        generated!("ttrpc/google.rpc.rs");
    }
}
