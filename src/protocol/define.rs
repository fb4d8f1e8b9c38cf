//! The macro behind [`methods`](super::methods): one row of the table becomes a
//! struct with a builder, its codec, its ids and what replies it expects.

/// Expands the table of methods. See `methods.rs` for how a row reads.
macro_rules! define_methods {
    ($(
        $(#[$class_doc:meta])*
        class $class:ident $class_id:literal {
            $(
                $(#[$doc:meta])*
                $variant:ident = $name:ident $id:literal $wire_name:literal
                $(new($($new:tt)*))?
                $(replies [$($reply:ident)|+] $(unless $nowait:ident)?)?
                {
                    $(
                        $(#[$field_doc:meta])*
                        $field:ident: $ty:ident $(= $default:expr)?,
                    )*
                }
            )*
        }
    )*) => {
        $(
            $(#[$class_doc])*
            pub mod $class {
                #[allow(unused_imports)]
                use super::super::table::FieldTable;
                #[allow(unused_imports)]
                use super::super::secret::Secret;
                #[allow(unused_imports)]
                use super::super::wire::{Field, LongString, Reader, ShortString, Writer};
                use super::super::errors::{DecodeError, EncodeError};
                use super::{Method, MethodId};

                $(
                    $(#[$doc])*
                    #[doc = concat!("\n\nOn the wire: `", $wire_name, "`, class ",
                        stringify!($class_id), ", method ", stringify!($id), ".")]
                    #[derive(Debug, Clone, PartialEq)]
                    #[non_exhaustive]
                    pub struct $name {
                        $($(#[$field_doc])* pub $field: $ty,)*
                    }

                    impl $name {
                        /// Class and method number.
                        pub const ID: MethodId = MethodId { class: $class_id, method: $id };

                        $(constructor! { $($new)* })?

                        $(setter! { $(#[$field_doc])* $field: $ty })*

                        #[allow(unused_variables)]
                        pub(crate) fn write(
                            &self,
                            writer: &mut Writer<'_>,
                        ) -> Result<(), EncodeError> {
                            $(self.$field.write(writer).map_err(|error| {
                                error.in_field(concat!($wire_name, " ", stringify!($field)))
                            })?;)*
                            Ok(())
                        }

                        #[allow(unused_variables)]
                        pub(crate) fn read(
                            reader: &mut Reader<'_>,
                        ) -> Result<Self, DecodeError> {
                            $(let $field = <$ty as Field>::read(reader)?;)*
                            Ok(Self { $($field),* })
                        }
                    }

                    impl Default for $name {
                        fn default() -> Self {
                            Self { $($field: default_value!($($default)?)),* }
                        }
                    }

                    from_argument! { $name $($($new)*)? }

                    impl From<$name> for Method {
                        fn from(method: $name) -> Self {
                            Self::$variant(method)
                        }
                    }

                    impl TryFrom<Method> for $name {
                        type Error = Method;

                        fn try_from(method: Method) -> Result<Self, Method> {
                            match method {
                                Method::$variant(method) => Ok(method),
                                other => Err(other),
                            }
                        }
                    }
                )*
            }
        )*

        /// Any method of AMQP 0-9-1, or of RabbitMQ's extensions to it.
        ///
        /// The calls of a channel take the structs themselves; this is for what has to
        /// hold any of them.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Method {
            $($(
                #[doc = concat!("`", $wire_name, "`")]
                $variant($class::$name),
            )*)*
        }

        impl Method {
            /// Class and method number.
            pub fn id(&self) -> MethodId {
                match self {
                    $($(Self::$variant(_) => $class::$name::ID,)*)*
                }
            }

            /// The replies of which one will come; none for a method without reply,
            /// or with its `nowait` set.
            pub(crate) fn replies(&self) -> &'static [MethodId] {
                match self {
                    $($($(
                        $(Self::$variant(method) if method.$nowait => &[],)?
                        Self::$variant(_) => &[$(reply_id!($class $reply)),+],
                    )?)*)*
                    _ => &[],
                }
            }

            pub(crate) fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
                match self {
                    $($(Self::$variant(method) => method.write(writer),)*)*
                }
            }

            /// Reads the arguments of method `id`; `None` if there is no such method.
            pub(crate) fn read(
                id: MethodId,
                reader: &mut Reader<'_>,
            ) -> Option<Result<Self, DecodeError>> {
                match (id.class, id.method) {
                    $($(($class_id, $id) => Some($class::$name::read(reader).map(Self::$variant)),)*)*
                    _ => None,
                }
            }
        }

        impl MethodId {
            /// The name in the specification, such as `queue.declare`.
            pub fn name(self) -> Option<&'static str> {
                match (self.class, self.method) {
                    $($(($class_id, $id) => Some($wire_name),)*)*
                    _ => None,
                }
            }
        }

        /// The default of every method, for tests that go through them all.
        #[cfg(test)]
        pub(crate) fn every_method() -> Vec<Method> {
            vec![$($($class::$name::default().into(),)*)*]
        }
    };
}

/// A reply is a struct of the same class.
macro_rules! reply_id {
    ($class:ident $reply:ident) => {
        $class::$reply::ID
    };
}

macro_rules! default_value {
    () => {
        Default::default()
    };
    ($default:expr) => {
        $default
    };
}

/// A builder method; strings and tables take whatever converts into them.
macro_rules! setter {
    (@into $(#[$doc:meta])* $field:ident: $ty:ident) => {
        $(#[$doc])*
        #[must_use]
        pub fn $field(mut self, $field: impl Into<$ty>) -> Self {
            self.$field = $field.into();
            self
        }
    };
    ($(#[$doc:meta])* $field:ident: ShortString) => {
        setter! { @into $(#[$doc])* $field: ShortString }
    };
    ($(#[$doc:meta])* $field:ident: LongString) => {
        setter! { @into $(#[$doc])* $field: LongString }
    };
    ($(#[$doc:meta])* $field:ident: Secret) => {
        setter! { @into $(#[$doc])* $field: Secret }
    };
    ($(#[$doc:meta])* $field:ident: FieldTable) => {
        setter! { @into $(#[$doc])* $field: FieldTable }
    };
    ($(#[$doc:meta])* $field:ident: $ty:ident) => {
        $(#[$doc])*
        #[must_use]
        pub fn $field(mut self, $field: $ty) -> Self {
            self.$field = $field;
            self
        }
    };
}

/// `new`, with the arguments that no sane call leaves out.
macro_rules! constructor {
    ($($arg:ident: ShortString),+) => {
        /// With everything else at its default.
        #[must_use]
        pub fn new($($arg: impl Into<ShortString>),+) -> Self {
            Self::default()$(.$arg($arg))+
        }
    };
    ($arg:ident: $ty:ident) => {
        /// With everything else at its default.
        #[must_use]
        pub fn new($arg: $ty) -> Self {
            Self::default().$arg($arg)
        }
    };
}

/// A method that needs just one value can be given as that value.
macro_rules! from_argument {
    ($name:ident $arg:ident: ShortString) => {
        impl From<&str> for $name {
            fn from($arg: &str) -> Self {
                Self::new($arg)
            }
        }

        impl From<String> for $name {
            fn from($arg: String) -> Self {
                Self::new($arg)
            }
        }

        impl From<&String> for $name {
            fn from($arg: &String) -> Self {
                Self::new($arg)
            }
        }

        impl From<ShortString> for $name {
            fn from($arg: ShortString) -> Self {
                Self::new($arg)
            }
        }

        impl From<&ShortString> for $name {
            fn from($arg: &ShortString) -> Self {
                Self::new($arg)
            }
        }
    };
    ($name:ident $arg:ident: $ty:ident) => {
        impl From<$ty> for $name {
            fn from($arg: $ty) -> Self {
                Self::new($arg)
            }
        }
    };
    ($($other:tt)*) => {};
}
