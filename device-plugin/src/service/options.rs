//! `GetDevicePluginOptions`.

use keelson_proto::deviceplugin::v1beta1 as api;

/// Neither of the optional calls is wanted.
pub(crate) fn plugin_options() -> api::DevicePluginOptions {
    api::DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: false }
}
