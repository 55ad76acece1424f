//! Validation of names, labels and annotations, worded as apimachinery's pkg/util/validation. Each check returns the
//! messages of what is wrong, in upstream's order; an empty list means valid.

/// RFC 1123 label, bytes.
pub const DNS1123_LABEL_LEN_MAX: usize = 63;
/// RFC 1123 subdomain, bytes.
pub const DNS1123_SUBDOMAIN_LEN_MAX: usize = 253;

pub fn dns1123_label(value: &str) -> Vec<String> { todo!() }
pub fn dns1123_subdomain(value: &str) -> Vec<String> { todo!() }
/// RFC 1035 label, the form of Service names.
pub fn dns1035_label(value: &str) -> Vec<String> { todo!() }
/// `example.com/name`: label keys, annotation keys, resource names.
pub fn qualified_name(value: &str) -> Vec<String> { todo!() }
pub fn label_value(value: &str) -> Vec<String> { todo!() }
/// A name that may be one segment of a URL path.
pub fn path_segment(value: &str) -> Vec<String> { todo!() }
pub fn env_var_name(value: &str) -> Vec<String> { todo!() }
pub fn config_map_key(value: &str) -> Vec<String> { todo!() }
/// IANA service name: a container port's name.
pub fn port_name(value: &str) -> Vec<String> { todo!() }
pub fn port_number(value: i64) -> Vec<String> { todo!() }
