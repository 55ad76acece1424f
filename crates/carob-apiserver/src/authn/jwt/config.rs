//! An AuthenticationConfiguration (apiserver.config.k8s.io), checked as apiserver `pkg/apis/apiserver/validation` checks it. Pure.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use carob_api::field::{FieldError, FieldErrors, FieldPath, aggregate};
use carob_api::names;
use carob_cel::{DeclType, Environment, Program, Type, selects};
use http::Uri;
use http::uri::Scheme;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::Value;

use super::keys::Algorithm;
use crate::policy::user_type;
use crate::webhook::roots_of;

/// The variables of expressions.
pub(super) const CLAIMS: &str = "claims";
pub(super) const USER: &str = "user";
/// Issuers of one configuration (upstream's limit).
const ISSUERS_MAX: usize = 64;
/// Domains whose keys of `extra` are Kubernetes' own.
const RESERVED_DOMAINS: [&str; 2] = ["kubernetes.io", "k8s.io"];

pub(super) static CLAIMS_TYPE: LazyLock<DeclType> = LazyLock::new(|| DeclType::map(DeclType::Dyn, None));
pub(super) static USER_TYPE: LazyLock<DeclType> = LazyLock::new(user_type);

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationConfigError {
    #[error("it is no AuthenticationConfiguration of apiserver.config.k8s.io/v1")]
    Format(#[source] serde_json::Error),
    #[error("{api_version} {kind} is no AuthenticationConfiguration of apiserver.config.k8s.io/v1")]
    Kind { api_version: String, kind: String },
    #[error("{}", aggregate(.0))]
    Invalid(FieldErrors),
    #[error("{name:?} is no way to sign a token; these are: {}", Algorithm::ALL.map(Algorithm::name).join(", "))]
    Algorithm { name: String },
}

/// Who may come without a certificate or a token of the cluster, and who that is then.
#[derive(Debug, Clone, Default)]
pub struct AuthenticationConfig {
    pub(super) issuers: Vec<IssuerConfig>,
    pub(crate) anonymous: Anonymous,
}

/// Which requests need no credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Anonymous {
    /// All; what they may do is a matter of authorization.
    #[default]
    Everywhere,
    Nowhere,
    /// Those for these paths.
    Paths(Vec<String>),
}

impl Anonymous {
    pub(crate) fn allows(&self, path: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Nowhere => false,
            Self::Paths(paths) => paths.iter().any(|one| one == path),
        }
    }
}

/// An issuer of tokens, with how its tokens are read.
#[derive(Debug, Clone)]
pub(super) struct IssuerConfig {
    pub(super) url: String,
    /// Where its configuration is, if not below its URL.
    pub(super) discovery_url: Option<String>,
    /// Whom its server has to be certified by; without them the machine's authorities are asked.
    pub(super) roots: Option<Vec<CertificateDer<'static>>>,
    pub(super) audiences: Vec<String>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) required_claims: Vec<(String, String)>,
    pub(super) claim_rules: Vec<Rule>,
    pub(super) user_rules: Vec<Rule>,
    pub(super) username: Source,
    pub(super) groups: Option<Source>,
    pub(super) uid: Option<Source>,
    pub(super) extra: Vec<(String, Program)>,
}

/// Where a part of a user comes from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Claim { claim: String, prefix: String },
    Expression(Program),
}

/// What has to hold.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) program: Program,
    pub(super) message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    kind: String,
    api_version: String,
    #[serde(default)]
    jwt: Vec<Jwt>,
    anonymous: Option<AnonymousConfiguration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnonymousConfiguration {
    #[serde(default)]
    enabled: bool,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Jwt {
    #[serde(default)]
    issuer: Issuer,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimValidationRule>,
    #[serde(default)]
    claim_mappings: ClaimMappings,
    #[serde(default)]
    user_validation_rules: Vec<UserValidationRule>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Issuer {
    #[serde(default)]
    url: String,
    #[serde(default, rename = "discoveryURL")]
    discovery_url: String,
    #[serde(default, rename = "certificateAuthority")]
    certificate_authority: String,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default, rename = "audienceMatchPolicy")]
    audience_match_policy: String,
    #[serde(default, rename = "egressSelectorType")]
    egress_selector_type: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClaimValidationRule {
    #[serde(default)]
    claim: String,
    #[serde(default)]
    required_value: String,
    #[serde(default)]
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserValidationRule {
    #[serde(default)]
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ClaimMappings {
    #[serde(default)]
    username: Mapping,
    #[serde(default)]
    groups: Mapping,
    #[serde(default)]
    uid: UidMapping,
    #[serde(default)]
    extra: Vec<ExtraMapping>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Mapping {
    #[serde(default)]
    claim: String,
    prefix: Option<String>,
    #[serde(default)]
    expression: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct UidMapping {
    #[serde(default)]
    claim: String,
    #[serde(default)]
    expression: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExtraMapping {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value_expression: String,
}

impl AuthenticationConfig {
    /// Reads a configuration. `own_issuers` are those of the cluster's own tokens, which no other may claim to be.
    pub fn parse(value: Value, own_issuers: &[String]) -> Result<Self, AuthenticationConfigError> {
        let read: Configuration = serde_json::from_value(value).map_err(AuthenticationConfigError::Format)?;
        let versions = ["v1", "v1beta1", "v1alpha1"].map(|version| format!("apiserver.config.k8s.io/{version}"));
        if read.kind != "AuthenticationConfiguration" || !versions.contains(&read.api_version) {
            return Err(AuthenticationConfigError::Kind { api_version: read.api_version, kind: read.kind });
        }
        let mut reader = Reader { own_issuers, errors: Vec::new() };
        let issuers = reader.issuers(read.jwt);
        let anonymous = reader.anonymous(read.anonymous);
        if reader.errors.is_empty() {
            Ok(Self { issuers, anonymous })
        } else {
            Err(AuthenticationConfigError::Invalid(reader.errors))
        }
    }

    /// Takes only tokens that are signed so (kube-apiserver `--oidc-signing-algs`).
    pub fn only_algorithms(mut self, algorithms: &[String]) -> Result<Self, AuthenticationConfigError> {
        let named = |name: &String| {
            Algorithm::named(name).ok_or_else(|| AuthenticationConfigError::Algorithm { name: name.clone() })
        };
        let algorithms: Vec<Algorithm> = algorithms.iter().map(named).collect::<Result<_, _>>()?;
        for issuer in &mut self.issuers {
            issuer.algorithms.clone_from(&algorithms);
        }
        Ok(self)
    }

    /// Without credentials nothing is answered (kube-apiserver `--anonymous-auth=false`).
    #[must_use]
    pub fn without_anonymous(mut self) -> Self {
        self.anonymous = Anonymous::Nowhere;
        self
    }

    /// Whether it says whose requests need no credentials.
    pub fn limits_anonymous(&self) -> bool {
        self.anonymous != Anonymous::Everywhere
    }
}

/// Reads and notes what is wrong.
struct Reader<'c> {
    own_issuers: &'c [String],
    errors: FieldErrors,
}

impl Reader<'_> {
    fn wrong(&mut self, error: FieldError) {
        self.errors.push(error);
    }

    fn anonymous(&mut self, read: Option<AnonymousConfiguration>) -> Anonymous {
        match read {
            None => Anonymous::Everywhere,
            Some(AnonymousConfiguration { enabled: false, conditions }) => {
                if !conditions.is_empty() {
                    let path = FieldPath::new("anonymous").child("conditions");
                    self.wrong(FieldError::invalid_unshown(
                        &path,
                        "enabled should be set to true when conditions are defined",
                    ));
                }
                Anonymous::Nowhere
            }
            Some(AnonymousConfiguration { conditions, .. }) if conditions.is_empty() => Anonymous::Everywhere,
            Some(AnonymousConfiguration { conditions, .. }) => {
                Anonymous::Paths(conditions.into_iter().map(|condition| condition.path).collect())
            }
        }
    }

    fn issuers(&mut self, read: Vec<Jwt>) -> Vec<IssuerConfig> {
        let root = FieldPath::new("jwt");
        if read.len() > ISSUERS_MAX {
            self.wrong(FieldError::too_many(&root, Some(read.len()), ISSUERS_MAX));
            return Vec::new();
        }
        let (mut urls, mut discovery_urls) = (BTreeSet::new(), BTreeSet::new());
        let mut issuers = Vec::new();
        for (index, jwt) in read.into_iter().enumerate() {
            let path = root.index(index);
            if !urls.insert(jwt.issuer.url.clone()) {
                self.wrong(FieldError::duplicate(&path.child("issuer").child("url"), jwt.issuer.url.as_str()));
            }
            let discovery_url = &jwt.issuer.discovery_url;
            if !discovery_url.is_empty() && !discovery_urls.insert(discovery_url.clone()) {
                self.wrong(FieldError::duplicate(&path.child("issuer").child("discoveryURL"), discovery_url.as_str()));
            }
            issuers.extend(self.issuer(jwt, &path));
        }
        issuers
    }

    fn issuer(&mut self, jwt: Jwt, path: &FieldPath) -> Option<IssuerConfig> {
        let at = path.child("issuer");
        self.issuer_urls(&jwt.issuer, &at);
        self.audiences(&jwt.issuer, &at);
        let mut roots = None;
        if !jwt.issuer.certificate_authority.is_empty() {
            match roots_of(jwt.issuer.certificate_authority.as_bytes()) {
                Ok(found) => roots = Some(found),
                Err(error) => {
                    self.wrong(FieldError::invalid(&at.child("certificateAuthority"), "<omitted>", error.to_string()))
                }
            }
        }
        if !jwt.issuer.egress_selector_type.is_empty() {
            let why = "this server has no egress selectors: it dials issuers itself";
            self.wrong(FieldError::invalid(
                &at.child("egressSelectorType"),
                jwt.issuer.egress_selector_type.as_str(),
                why,
            ));
        }
        let mappings = jwt.claim_mappings;
        self.verified_email(&mappings, &jwt.claim_validation_rules, path);
        let (required_claims, claim_rules) =
            self.claim_rules(jwt.claim_validation_rules, &path.child("claimValidationRules"));
        let at = path.child("claimMappings");
        let username = self.mapping(mappings.username, &at.child("username"), true);
        let groups = self.mapping(mappings.groups, &at.child("groups"), false);
        let uid = self.uid(mappings.uid, &at.child("uid"));
        let extra = self.extra(mappings.extra, &at.child("extra"));
        let user_rules = self.user_rules(jwt.user_validation_rules, &path.child("userValidationRules"));
        Some(IssuerConfig {
            url: jwt.issuer.url,
            discovery_url: Some(jwt.issuer.discovery_url).filter(|url| !url.is_empty()),
            roots,
            audiences: jwt.issuer.audiences,
            algorithms: Algorithm::ALL.to_vec(),
            required_claims,
            claim_rules,
            user_rules,
            username: username?,
            groups,
            uid,
            extra,
        })
    }

    fn issuer_urls(&mut self, issuer: &Issuer, path: &FieldPath) {
        let at = path.child("url");
        if issuer.url.is_empty() {
            self.wrong(FieldError::required(&at, ""));
        } else {
            if self.own_issuers.contains(&issuer.url) {
                let why = format!("URL must not overlap with disallowed issuers: [{}]", self.own_issuers.join(" "));
                self.wrong(FieldError::invalid(&at, issuer.url.as_str(), why));
            }
            self.url(&issuer.url, &at);
        }
        let at = path.child("discoveryURL");
        if !issuer.discovery_url.is_empty() {
            if issuer.url.trim_end_matches('/') == issuer.discovery_url.trim_end_matches('/') {
                let why = "discoveryURL must be different from URL";
                self.wrong(FieldError::invalid(&at, issuer.discovery_url.as_str(), why));
            }
            self.url(&issuer.discovery_url, &at);
        }
    }

    fn url(&mut self, text: &str, path: &FieldPath) {
        // `Uri` keeps no fragment.
        let (text_of_uri, fragment) = text.split_once('#').unwrap_or((text, ""));
        let uri: Uri = match text_of_uri.parse() {
            Ok(uri) => uri,
            Err(error) => return self.wrong(FieldError::invalid(path, text, format!("{error}"))),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        for (is_wrong, why) in [
            (uri.scheme() != Some(&Scheme::HTTPS), "URL scheme must be https"),
            (authority.contains('@'), "URL must not contain a username or password"),
            (uri.query().is_some_and(|query| !query.is_empty()), "URL must not contain a query"),
            (!fragment.is_empty(), "URL must not contain a fragment"),
        ] {
            if is_wrong {
                self.wrong(FieldError::invalid(path, text, why));
            }
        }
    }

    fn audiences(&mut self, issuer: &Issuer, path: &FieldPath) {
        let at = path.child("audiences");
        if issuer.audiences.is_empty() {
            return self.wrong(FieldError::required(&at, format!("at least one {at} is required")));
        }
        let mut seen = BTreeSet::new();
        for (index, audience) in issuer.audiences.iter().enumerate() {
            if audience.is_empty() {
                self.wrong(FieldError::required(&at.index(index), ""));
            }
            if !seen.insert(audience) {
                self.wrong(FieldError::duplicate(&at.index(index), audience.as_str()));
            }
        }
        let policy = issuer.audience_match_policy.as_str();
        let why = match (issuer.audiences.len(), policy) {
            (_, "MatchAny") | (1, "") => return,
            (1, _) => "audienceMatchPolicy must be empty or MatchAny for single audience",
            _ => "audienceMatchPolicy must be MatchAny for multiple audiences",
        };
        self.wrong(FieldError::invalid(&path.child("audienceMatchPolicy"), policy, why));
    }

    fn claim_rules(&mut self, rules: Vec<ClaimValidationRule>, path: &FieldPath) -> (Vec<(String, String)>, Vec<Rule>) {
        let (mut claims, mut compiled) = (Vec::new(), Vec::new());
        let (mut seen_claims, mut seen) = (BTreeSet::new(), BTreeSet::new());
        for (index, rule) in rules.into_iter().enumerate() {
            let at = path.index(index);
            match (rule.claim.is_empty(), rule.expression.is_empty()) {
                (false, false) => {
                    let why = "claim and expression can't both be set";
                    self.wrong(FieldError::invalid(&at, rule.claim.as_str(), why));
                }
                (true, true) => self.wrong(FieldError::required(&at, "claim or expression is required")),
                (false, true) => {
                    if !rule.message.is_empty() {
                        let why = "may not be specified when claim is set";
                        self.wrong(FieldError::invalid(&at.child("message"), rule.message.as_str(), why));
                    }
                    if !seen_claims.insert(rule.claim.clone()) {
                        self.wrong(FieldError::duplicate(&at.child("claim"), rule.claim.as_str()));
                    }
                    claims.push((rule.claim, rule.required_value));
                }
                (true, false) => {
                    if !rule.required_value.is_empty() {
                        let why = "may not be specified when expression is set";
                        self.wrong(FieldError::invalid(&at.child("requiredValue"), rule.required_value.as_str(), why));
                    }
                    if seen.insert(rule.expression.clone()) {
                        compiled.extend(self.rule(CLAIMS, &rule.expression, rule.message, &at));
                    } else {
                        self.wrong(FieldError::duplicate(&at.child("expression"), rule.expression.as_str()));
                    }
                }
            }
        }
        (claims, compiled)
    }

    fn user_rules(&mut self, rules: Vec<UserValidationRule>, path: &FieldPath) -> Vec<Rule> {
        let (mut compiled, mut seen) = (Vec::new(), BTreeSet::new());
        for (index, rule) in rules.into_iter().enumerate() {
            let at = path.index(index);
            if rule.expression.is_empty() {
                self.wrong(FieldError::required(&at.child("expression"), ""));
            } else if seen.insert(rule.expression.clone()) {
                compiled.extend(self.rule(USER, &rule.expression, rule.message, &at));
            } else {
                self.wrong(FieldError::duplicate(&at.child("expression"), rule.expression.as_str()));
            }
        }
        compiled
    }

    fn rule(&mut self, variable: &str, expression: &str, message: String, path: &FieldPath) -> Option<Rule> {
        let at = path.child("expression");
        let program = self.compile(variable, expression, &at)?;
        if *program.output_type() != Type::Bool {
            self.wrong(FieldError::invalid(&at, expression, "must evaluate to bool"));
        }
        Some(Rule { program, message })
    }

    fn compile(&mut self, variable: &str, expression: &str, path: &FieldPath) -> Option<Program> {
        let decl = if variable == USER { USER_TYPE.clone() } else { CLAIMS_TYPE.clone() };
        match Environment::new().variable(variable, decl).compile(expression) {
            Ok(program) => Some(program),
            Err(error) => {
                self.wrong(FieldError::invalid(path, expression, format!("compilation failed: {error}")));
                None
            }
        }
    }

    fn mapping(&mut self, mapping: Mapping, path: &FieldPath, is_required: bool) -> Option<Source> {
        match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
            (false, false) => {
                self.wrong(FieldError::invalid(path, "", "claim and expression can't both be set"));
                None
            }
            (true, true) => {
                if is_required {
                    self.wrong(FieldError::required(path, "claim or expression is required"));
                }
                None
            }
            (true, false) => {
                if let Some(prefix) = mapping.prefix {
                    let why = "may not be specified when expression is set";
                    self.wrong(FieldError::invalid(&path.child("prefix"), prefix, why));
                }
                self.compile(CLAIMS, &mapping.expression, &path.child("expression")).map(Source::Expression)
            }
            (false, true) => match mapping.prefix {
                Some(prefix) => Some(Source::Claim { claim: mapping.claim, prefix }),
                None => {
                    let why =
                        "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                    self.wrong(FieldError::required(&path.child("prefix"), why));
                    None
                }
            },
        }
    }

    fn uid(&mut self, mapping: UidMapping, path: &FieldPath) -> Option<Source> {
        match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
            (false, false) => {
                self.wrong(FieldError::invalid(path, "", "claim and expression can't both be set"));
                None
            }
            (true, true) => None,
            (false, true) => Some(Source::Claim { claim: mapping.claim, prefix: String::new() }),
            (true, false) => {
                self.compile(CLAIMS, &mapping.expression, &path.child("expression")).map(Source::Expression)
            }
        }
    }

    fn extra(&mut self, mappings: Vec<ExtraMapping>, path: &FieldPath) -> Vec<(String, Program)> {
        let (mut compiled, mut seen) = (Vec::new(), BTreeSet::new());
        for (index, mapping) in mappings.into_iter().enumerate() {
            let at = path.index(index);
            let key = mapping.key.as_str();
            for (value, why) in names::domain_prefixed_path(key) {
                self.wrong(FieldError::invalid(&at.child("key"), value, why));
            }
            if key != key.to_lowercase() {
                self.wrong(FieldError::invalid(&at.child("key"), key, "must be lowercase"));
            }
            let domain = key.split_once('/').map_or("", |(domain, _)| domain);
            let is_below = |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
            if RESERVED_DOMAINS.into_iter().any(is_below) {
                let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
                self.wrong(FieldError::invalid(&at.child("key"), key, why));
            }
            if !seen.insert(mapping.key.clone()) {
                self.wrong(FieldError::duplicate(&at.child("key"), key));
            } else if mapping.value_expression.is_empty() {
                self.wrong(FieldError::required(&at.child("valueExpression"), ""));
            } else if let Some(program) = self.compile(CLAIMS, &mapping.value_expression, &at.child("valueExpression"))
            {
                compiled.push((mapping.key, program));
            }
        }
        compiled
    }

    /// A name that is made of the mail address needs a look at whether it was verified.
    fn verified_email(&mut self, mappings: &ClaimMappings, rules: &[ClaimValidationRule], path: &FieldPath) {
        let username = mappings.username.expression.as_str();
        let mut others = rules
            .iter()
            .map(|rule| &rule.expression)
            .chain(mappings.extra.iter().map(|mapping| &mapping.value_expression))
            .map(String::as_str)
            .chain([username]);
        if selects(username, CLAIMS, "email") && !others.any(|one| selects(one, CLAIMS, "email_verified")) {
            let why = "claims.email_verified must be used in claimMappings.username.expression or \
                       claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in \
                       claimMappings.username.expression";
            let at = path.child("claimMappings").child("username").child("expression");
            self.wrong(FieldError::invalid(&at, username, why));
        }
    }
}
