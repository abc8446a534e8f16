//! What a store is told besides its URI: OpenDAL's keys, credentials among them.

/// Names and values. Later ones go before earlier ones, and what the URI says itself before all.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct StoreKeys(Vec<(String, String)>);

/// Any value may be a secret.
impl std::fmt::Debug for StoreKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl StoreKeys {
    pub(crate) fn new(keys: impl IntoIterator<Item = (String, String)>) -> StoreKeys {
        let mut all = StoreKeys::default();
        for (name, value) in keys {
            all.0.retain(|(known, _)| *known != name);
            all.0.push((name, value));
        }
        all
    }

    /// What a URI does not say itself.
    pub(crate) fn besides<'a>(&'a self, query: &'a [(String, String)]) -> impl Iterator<Item = &'a (String, String)> {
        let said = |name: &str| query.iter().any(|(known, _)| known == name);
        self.0.iter().filter(move |(name, _)| !said(name))
    }
}
