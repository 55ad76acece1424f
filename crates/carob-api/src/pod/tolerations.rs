//! Which taints a Pod bears (k8s.io/api core/v1/toleration.go, `ToleratesTaint`).

/// What of a taint counts.
#[derive(Debug, Clone, Copy)]
pub struct Taint<'a> {
    pub key: &'a str,
    pub value: &'a str,
    pub effect: &'a str,
}

/// A toleration; what is left out is empty.
#[derive(Debug, Clone, Copy)]
pub struct Toleration<'a> {
    pub key: &'a str,
    pub operator: &'a str,
    pub value: &'a str,
    pub effect: &'a str,
}

impl Toleration<'_> {
    pub fn bears(&self, taint: Taint<'_>) -> bool {
        let matches = |own: &str, other: &str| own.is_empty() || own == other;
        if !matches(self.effect, taint.effect) || !matches(self.key, taint.key) {
            return false;
        }
        let numbers = || Some((taint.value.parse::<i64>().ok()?, self.value.parse::<i64>().ok()?));
        match self.operator {
            "" | "Equal" => self.value == taint.value,
            "Exists" => true,
            "Lt" => numbers().is_some_and(|(taint, own)| taint < own),
            "Gt" => numbers().is_some_and(|(taint, own)| taint > own),
            _ => false,
        }
    }
}
