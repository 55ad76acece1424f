//! Quality of service classes (kubernetes pkg/apis/core/v1/helper/qos/qos.go).

use crate::quantity::Quantity;

/// How dear a Pod is to its node when memory runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort].into_iter().find(|qos| qos.as_str() == text)
    }
}

/// What a container, or a Pod itself, asks for of one resource. What is not above zero is not asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    request: Option<Quantity>,
    limit: Option<Quantity>,
}

impl Asked {
    pub fn new(request: Option<Quantity>, limit: Option<Quantity>) -> Self {
        let positive = |amount: &Quantity| !amount.is_zero() && !amount.is_negative();
        Self { request: request.filter(positive), limit: limit.filter(positive) }
    }

    fn is_set(self) -> bool {
        self.request.is_some() || self.limit.is_some()
    }

    fn is_exact(self) -> bool {
        self.limit.is_some() && self.request.is_none_or(|request| Some(request) == self.limit)
    }
}

/// The class of a Pod: by what it asks for itself of CPU and memory, or else by what all its containers do, init
/// containers included.
pub fn qos(own: Option<[Asked; 2]>, containers: impl IntoIterator<Item = [Asked; 2]>) -> Qos {
    if let Some(own) = own.filter(|own| own.iter().any(|asked| asked.is_set())) {
        return class_of([own]);
    }
    class_of(containers)
}

fn class_of(all: impl IntoIterator<Item = [Asked; 2]>) -> Qos {
    let (mut any, mut exact) = (false, true);
    for asked in all.into_iter().flatten() {
        any |= asked.is_set();
        exact &= asked.is_exact();
    }
    match (any, exact) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}
