//! Named formats of text (apiserver pkg/cel/library/format.go).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_api::names;

use super::{Context, Cost, Overload, T, function, method, time, url::Url};
use crate::error::EvalError;
use crate::functions::strings::texts;
use crate::types::Named;
use crate::value::Value;

type Out<'a> = Result<Value<'a>, EvalError>;

const FORMAT: T = T::Named(Named::Format);

/// A format: its name, how a text is checked against it, and the length of the pattern that the check is worth.
#[derive(Debug)]
pub struct Format {
    pub(crate) name: &'static str,
    validate: fn(&str) -> Vec<String>,
    pub(crate) regex_size: u64,
}

macro_rules! named {
    ($( $function:literal, $run:ident, $name:literal, $size:expr, $validate:expr; )*) => {
        static FORMATS: &[(&str, Format)] = &[
            $( ($function, Format { name: $name, validate: $validate, regex_size: $size }), )*
        ];

        $( fn $run<'a>(_: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
            find($function).ok_or_else(EvalError::no_such_overload)
        } )*

        pub(super) static OVERLOADS: &[Overload] = &[
            method("validate", &[FORMAT, T::String], T::Optional(&T::List(&T::String)), Cost::Validate, validate),
            function("format.named", &[T::String], T::Optional(&FORMAT), Cost::Unit, named_format),
            $( function(concat!("format.", $function), &[], FORMAT, Cost::Unit, $run), )*
        ];
    };
}

named! {
    "dns1123Label", dns1123_label, "DNS1123Label", 30, names::dns1123_label;
    "dns1123Subdomain", dns1123_subdomain, "DNS1123Subdomain", 60, names::dns1123_subdomain;
    "dns1035Label", dns1035_label, "DNS1035Label", 30, names::dns1035_label;
    "qualifiedName", qualified_name, "QualifiedName", 60, names::qualified_name;
    "dns1123LabelPrefix", dns1123_label_prefix, "DNS1123LabelPrefix", 30, |text| names::dns1123_label(&prefix(text));
    "dns1123SubdomainPrefix", dns1123_subdomain_prefix, "DNS1123SubdomainPrefix", 60, |text| names::dns1123_subdomain(&prefix(text));
    "dns1035LabelPrefix", dns1035_label_prefix, "DNS1035LabelPrefix", 30, |text| names::dns1035_label(&prefix(text));
    "labelValue", label_value, "LabelValue", 40, names::label_value;
    "uri", uri, "URI", 1103, |text| Url::parse(text).err().into_iter().collect();
    "uuid", uuid, "uuid", 79, |text| unless(is_uuid(text), "does not match the UUID format");
    "byte", byte, "byte", 84, |text| unless(STANDARD.decode(text).is_ok(), "invalid base64");
    "date", date, "date", 74, |text| unless(time::date(text).is_some(), "invalid date");
    "datetime", datetime, "datetime", 74, |text| unless(time::date_time(text).is_some(), "invalid datetime");
}

fn unless(valid: bool, message: &str) -> Vec<String> {
    if valid { Vec::new() } else { vec![message.to_owned()] }
}

/// What a name begins with may end with a dash, since something follows.
fn prefix(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => text.to_owned(),
    }
}

fn is_uuid(text: &str) -> bool {
    let digits: Vec<&str> = text.split('-').collect();
    let hex = |part: &&str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let lengths: Vec<usize> = digits.iter().map(|part| part.len()).collect();
    digits.iter().all(hex) && (lengths == [8, 4, 4, 4, 12] || lengths == [32])
}

fn find(name: &str) -> Option<Value<'static>> {
    FORMATS.iter().find(|(function, _)| *function == name).map(|(_, format)| Value::Format(format))
}

fn named_format<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(find(args[0].as_str()?).map_or(Value::Optional(None), Value::some))
}

fn validate<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    let Value::Format(format) = &args[0] else { return Err(EvalError::no_such_overload()) };
    let faults = (format.validate)(args[1].as_str()?);
    Ok(if faults.is_empty() { Value::Optional(None) } else { Value::some(texts(faults)) })
}
