//! Amounts of resources, in the units that the scheduler counts in.

use std::ops::{Add, AddAssign, Sub, SubAssign};

use super::Str;

/// Thousandths of a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MilliCpu(pub i64);

/// Bytes of memory or storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub i64);

macro_rules! amount {
    ($name:ident) => {
        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }
        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }
        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }
        impl SubAssign for $name {
            fn sub_assign(&mut self, other: Self) {
                *self = *self - other;
            }
        }
    };
}
amount!(MilliCpu);
amount!(Bytes);

/// Which resource is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    Cpu,
    Memory,
    Ephemeral,
    /// An extended resource or huge pages.
    Scalar(Str),
}

impl Resource {
    pub fn named(name: &str) -> Self {
        match name {
            "cpu" => Self::Cpu,
            "memory" => Self::Memory,
            "ephemeral-storage" => Self::Ephemeral,
            other => Self::Scalar(other.into()),
        }
    }
}

/// What a Pod asks for or a node has. Extended resources are in whole units, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    pub cpu: MilliCpu,
    pub memory: Bytes,
    pub ephemeral: Bytes,
    scalar: Vec<(Str, i64)>,
}

impl Resources {
    pub fn new(cpu: MilliCpu, memory: Bytes) -> Self {
        Self { cpu, memory, ..Self::default() }
    }

    /// Extended resources and huge pages, by name.
    pub fn scalars(&self) -> &[(Str, i64)] {
        &self.scalar
    }

    /// The amount of one extended resource; zero where it is not named.
    pub fn scalar(&self, name: &str) -> i64 {
        match self.find(name) {
            Ok(at) => self.scalar[at].1,
            Err(_) => 0,
        }
    }

    /// The amount of a resource, in its own unit.
    pub fn amount(&self, resource: &Resource) -> i64 {
        match resource {
            Resource::Cpu => self.cpu.0,
            Resource::Memory => self.memory.0,
            Resource::Ephemeral => self.ephemeral.0,
            Resource::Scalar(name) => self.scalar(name),
        }
    }

    pub fn set_scalar(&mut self, name: Str, amount: i64) {
        match self.find(&name) {
            Ok(at) => self.scalar[at].1 = amount,
            Err(at) => self.scalar.insert(at, (name, amount)),
        }
    }

    /// Whether nothing at all is asked for.
    pub fn is_zero(&self) -> bool {
        self.cpu.0 == 0
            && self.memory.0 == 0
            && self.ephemeral.0 == 0
            && self.scalar.iter().all(|(_, amount)| *amount == 0)
    }

    pub fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.memory += other.memory;
        self.ephemeral += other.ephemeral;
        for (name, amount) in &other.scalar {
            let sum = self.scalar(name).saturating_add(*amount);
            self.set_scalar(name.clone(), sum);
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        self.cpu -= other.cpu;
        self.memory -= other.memory;
        self.ephemeral -= other.ephemeral;
        for (name, amount) in &other.scalar {
            let rest = self.scalar(name).saturating_sub(*amount);
            self.set_scalar(name.clone(), rest);
        }
    }

    /// Raises every amount to at least that of `other`.
    pub fn raise_to(&mut self, other: &Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        for (name, amount) in &other.scalar {
            let most = self.scalar(name).max(*amount);
            self.set_scalar(name.clone(), most);
        }
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.scalar.binary_search_by(|(held, _)| (**held).cmp(name))
    }
}

impl carob_api::pod::Amounts for Resources {
    fn add(&mut self, more: &Self) {
        Resources::add(self, more);
    }

    fn raise(&mut self, to: &Self) {
        self.raise_to(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_and_subtracting_are_inverse() {
        let mut node = Resources::new(MilliCpu(4000), Bytes(1 << 30));
        node.set_scalar("example.com/gpu".into(), 2);
        let mut pod = Resources::new(MilliCpu(500), Bytes(1 << 20));
        pod.set_scalar("example.com/gpu".into(), 1);
        let before = node.clone();
        node.add(&pod);
        assert_eq!(node.scalar("example.com/gpu"), 3);
        node.subtract(&pod);
        assert_eq!(node, before);
    }

    #[test]
    fn raising_takes_the_larger_of_each() {
        let mut a = Resources::new(MilliCpu(100), Bytes(10));
        let mut b = Resources::new(MilliCpu(50), Bytes(20));
        b.set_scalar("example.com/gpu".into(), 1);
        a.raise_to(&b);
        assert_eq!((a.cpu, a.memory, a.scalar("example.com/gpu")), (MilliCpu(100), Bytes(20), 1));
    }
}
