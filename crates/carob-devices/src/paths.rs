//! The paths of the calls.

/// Bytes of one message (the default of Go's library, which most plug-ins use).
pub const MESSAGE_LEN_MAX: usize = 4 << 20;

/// What the node offers to plug-ins.
pub const REGISTER: &str = "/v1beta1.Registration/Register";

/// What the node offers to exporters.
pub const LIST_POD_RESOURCES: &str = "/v1.PodResourcesLister/List";
pub const GET_POD_RESOURCES: &str = "/v1.PodResourcesLister/Get";
pub const GET_ALLOCATABLE_RESOURCES: &str = "/v1.PodResourcesLister/GetAllocatableResources";

pub const GET_OPTIONS: &str = "/v1beta1.DevicePlugin/GetDevicePluginOptions";
pub const LIST_AND_WATCH: &str = "/v1beta1.DevicePlugin/ListAndWatch";
pub const GET_PREFERRED_ALLOCATION: &str = "/v1beta1.DevicePlugin/GetPreferredAllocation";
pub const ALLOCATE: &str = "/v1beta1.DevicePlugin/Allocate";
pub const PRE_START_CONTAINER: &str = "/v1beta1.DevicePlugin/PreStartContainer";
