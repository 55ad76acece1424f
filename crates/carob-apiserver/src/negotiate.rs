//! Content negotiation: which form of an object a client accepts, and in which its body came
//! (apiserver `pkg/endpoints/handlers/negotiation`).

use carob_api::{Status, proto};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

use crate::error::ApiResult;

pub(crate) const JSON: &str = "application/json";
pub(crate) const YAML: &str = "application/yaml";
/// What a response may be encoded in, in upstream's order of preference.
const ENCODINGS: [(&str, Encoding); 3] =
    [(JSON, Encoding::Json), (YAML, Encoding::Yaml), (proto::MEDIA_TYPE, Encoding::Protobuf)];
/// Clauses of one Accept header that are looked at; kubectl sends three.
const ACCEPT_CLAUSES_MAX: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => proto::MEDIA_TYPE,
        }
    }
}

/// What the object is turned into before it is encoded: the `as=` parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Object,
    /// `as=Table`, with the version of `meta.k8s.io`.
    Table(MetaVersion),
    /// `as=PartialObjectMetadata` and, for collections, `as=PartialObjectMetadataList`.
    Metadata(MetaVersion),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetaVersion {
    V1,
    V1Beta1,
}

impl MetaVersion {
    pub(crate) fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }

    fn parse(version: &str) -> Option<Self> {
        match version {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1Beta1),
            _ => None,
        }
    }
}

/// The chosen form of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) encoding: Encoding,
    pub(crate) shape: Shape,
}

impl Form {
    pub(crate) const JSON: Self = Self { encoding: Encoding::Json, shape: Shape::Object };

    /// Stored bytes need no more than their revision to be answered in this form.
    pub(crate) fn is_plain_json(self) -> bool {
        self == Self::JSON
    }
}

/// What the endpoint can answer with beside plain objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Objects only: reviews, discovery, Status.
    Objects,
    /// One object of a kind with columns.
    Item,
    /// A list, a watch, or a deletion of many.
    Collection,
}

/// One clause of an Accept header.
#[derive(Debug)]
pub(crate) struct Clause<'a> {
    pub(crate) media_type: &'a str,
    pub(crate) params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';');
        let media_type = parts.next()?.trim();
        if !media_type.contains('/') && media_type != "*" {
            return None;
        }
        let mut clause = Self { media_type, params: Vec::new(), quality: 1.0 };
        for part in parts {
            let (key, value) = part.split_once('=')?;
            let (key, value) = (key.trim(), value.trim().trim_matches('"'));
            if key == "q" {
                clause.quality = value.parse().ok().filter(|quality| (0.0..=1.0).contains(quality))?;
            } else {
                clause.params.push((key, value));
            }
        }
        Some(clause)
    }

    pub(crate) fn param(&self, key: &str) -> Option<&'a str> {
        self.params.iter().find(|(own, _)| *own == key).map(|(_, value)| *value)
    }

    pub(crate) fn covers(&self, media_type: &str) -> bool {
        match self.media_type.split_once('/') {
            Some(("*", "*")) | None => true,
            Some((kind, "*")) => media_type.split('/').next() == Some(kind),
            Some(_) => media_type == self.media_type,
        }
    }

    /// The shape that the clause asks for, or `None` when this endpoint has no such shape.
    fn shape(&self, offer: Offer) -> Option<Shape> {
        let Some(kind) = self.param("as") else { return Some(Shape::Object) };
        if self.param("g").is_some_and(|group| group != "meta.k8s.io") {
            return None;
        }
        let version = MetaVersion::parse(self.param("v")?)?;
        match (kind, offer) {
            ("Table", Offer::Item | Offer::Collection) => Some(Shape::Table(version)),
            ("PartialObjectMetadata", Offer::Item) => Some(Shape::Metadata(version)),
            // A watch streams items and a list is one list: clients name either.
            ("PartialObjectMetadata" | "PartialObjectMetadataList", Offer::Collection) => {
                Some(Shape::Metadata(version))
            }
            _ => None,
        }
    }
}

/// The Accept header's clauses, the best first; equal ones keep their order.
pub(crate) fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut clauses: Vec<Clause<'_>> =
        values.flat_map(|value| value.split(',')).take(ACCEPT_CLAUSES_MAX).filter_map(Clause::parse).collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

/// Chooses the form of the response; 406 when nothing that the client accepts can be made.
pub(crate) fn negotiate(headers: &HeaderMap, offer: Offer) -> ApiResult<Form> {
    negotiate_among(&ENCODINGS, headers, offer)
}

/// As [`negotiate`], for objects of custom kinds: of those only the metadata has a protobuf form.
pub(crate) fn negotiate_custom(headers: &HeaderMap, offer: Offer) -> ApiResult<Form> {
    negotiate_among(&ENCODINGS[..2], headers, offer)
}

/// `encodings` are those of whole objects.
fn negotiate_among(encodings: &[(&'static str, Encoding)], headers: &HeaderMap, offer: Offer) -> ApiResult<Form> {
    let Some(accept) = headers.get(ACCEPT) else { return Ok(Form::JSON) };
    if matches!(accept.as_bytes(), b"" | b"*/*" | b"application/json") {
        return Ok(Form::JSON);
    }
    for clause in clauses(headers) {
        let Some(shape) = clause.shape(offer) else { continue };
        let offered = match shape {
            Shape::Object => encodings,
            Shape::Metadata(_) => &ENCODINGS,
            // A Table's cells are of any type: it has no protobuf form.
            Shape::Table(_) => &ENCODINGS[..2],
        };
        if let Some((_, encoding)) = offered.iter().find(|(media_type, _)| clause.covers(media_type)) {
            return Ok(Form { encoding: *encoding, shape });
        }
    }
    let media_types: Vec<&str> = encodings.iter().map(|(media_type, _)| *media_type).collect();
    Err(Status::not_acceptable(&media_types).into())
}

/// The encoding of a request's body; JSON when the client does not say; 415 for what carob cannot read.
pub(crate) fn body_encoding(headers: &HeaderMap) -> ApiResult<Encoding> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Encoding::Json) };
    let named = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if named.is_empty() {
        return Ok(Encoding::Json);
    }
    let found = ENCODINGS.iter().find(|(media_type, _)| named.eq_ignore_ascii_case(media_type));
    let (_, encoding) =
        found.ok_or_else(|| Status::unsupported_media_type(&ENCODINGS.map(|(media_type, _)| media_type)))?;
    Ok(*encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str, offer: Offer) -> Result<Form, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().expect("a test's header is valid"));
        negotiate(&headers, offer).map_err(|error| error.status().code)
    }

    #[test]
    fn the_best_clause_that_can_be_served_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let json = |shape| Ok(Form { encoding: Encoding::Json, shape });
        let cases = [
            (kubectl, Offer::Collection, json(Shape::Table(MetaVersion::V1))),
            (kubectl, Offer::Item, json(Shape::Table(MetaVersion::V1))),
            (kubectl, Offer::Objects, json(Shape::Object)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", Offer::Objects, Err(406)),
            ("application/json;as=Table;v=v2;g=meta.k8s.io", Offer::Collection, Err(406)),
            (
                "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
                Offer::Collection,
                json(Shape::Metadata(MetaVersion::V1)),
            ),
            (
                "application/vnd.kubernetes.protobuf, */*",
                Offer::Item,
                Ok(Form { encoding: Encoding::Protobuf, shape: Shape::Object }),
            ),
            ("application/yaml", Offer::Item, Ok(Form { encoding: Encoding::Yaml, shape: Shape::Object })),
            ("text/html;q=0.9,application/json;q=0.8", Offer::Item, json(Shape::Object)),
            (
                "application/json;q=0.1,application/yaml;q=0.9",
                Offer::Item,
                Ok(Form { encoding: Encoding::Yaml, shape: Shape::Object }),
            ),
            ("application/*", Offer::Item, json(Shape::Object)),
            ("text/html", Offer::Item, Err(406)),
            ("nonsense", Offer::Item, Err(406)),
            ("*/*", Offer::Item, json(Shape::Object)),
        ];
        for (accept, offer, expected) in cases {
            assert_eq!(form(accept, offer), expected, "{accept} {offer:?}");
        }
    }

    #[test]
    fn custom_kinds_have_no_protobuf_form() {
        let form = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("a test's header is valid"));
            negotiate_custom(&headers, Offer::Item).map_err(|error| error.status().code)
        };
        assert_eq!(form("application/vnd.kubernetes.protobuf, application/json"), Ok(Form::JSON));
        assert_eq!(form("application/vnd.kubernetes.protobuf"), Err(406));
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        let shape = Shape::Metadata(MetaVersion::V1);
        assert_eq!(form(metadata), Ok(Form { encoding: Encoding::Protobuf, shape }));
        assert_eq!(form("application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1"), Err(406));
    }

    #[test]
    fn bodies_are_json_yaml_or_protobuf() {
        let encoding = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, value.parse().expect("a test's header is valid"));
            body_encoding(&headers).map_err(|error| error.status().code)
        };
        assert_eq!(body_encoding(&HeaderMap::new()), Ok(Encoding::Json));
        assert_eq!(encoding("application/json; charset=utf-8"), Ok(Encoding::Json));
        assert_eq!(encoding("application/vnd.kubernetes.protobuf"), Ok(Encoding::Protobuf));
        assert_eq!(encoding("text/plain"), Err(415));
    }
}
