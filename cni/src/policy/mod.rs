//! Pure decisions: which address comes next, what things are called.

pub(crate) mod allocate;
pub(crate) mod doctor;
pub(crate) mod link_file;
pub(crate) mod naming;
pub(crate) mod needs;
pub(crate) mod source_routing;
