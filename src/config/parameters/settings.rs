//! The macro that declares settings.

/// Declares the setter and the getter of each setting: `copy` returns the value, `reference` a
/// reference to it.
macro_rules! settings {
    (
        impl $owner:ident {
            $($(#[$doc:meta])* $field:ident: $ty:ty, $kind:ident $getter:ident: $value:ty;)*
        }
    ) => {
        impl $owner {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $field(mut self, $field: $ty) -> Self {
                    self.$field = $field.into();
                    self
                }
            )*
        }

        /// # Reading the settings
        impl $owner {
            $(settings! { @get $kind $field $getter $value })*
        }
    };
    (@get copy $field:ident $getter:ident $value:ty) => {
        #[doc = concat!("Returns the setting [`", stringify!($field), "`](Self::", stringify!($field), ").")]
        pub fn $getter(&self) -> $value {
            self.$field
        }
    };
    (@get reference $field:ident $getter:ident $value:ty) => {
        #[doc = concat!("Returns the setting [`", stringify!($field), "`](Self::", stringify!($field), ").")]
        pub fn $getter(&self) -> &$value {
            &self.$field
        }
    };
}
pub(in crate::config) use settings;
