//! The macro behind the table of [`methods`](super::methods).
//!
//! It expands each row to a struct with a builder, a codec, the method's id and the ids of its
//! replies.

/// Expands the table of methods. `methods.rs` describes the syntax of a row.
macro_rules! define_methods {
    ($(
        $(#[$class_doc:meta])*
        class $class:ident $class_id:literal $(with $($kind:ident)|+)? {
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
                use super::super::table::field_value::FieldValue;
                #[allow(unused_imports)]
                use super::super::table::FieldTable;
                #[allow(unused_imports)]
                use super::super::secret::Secret;
                #[allow(unused_imports)]
                use super::super::wire::{Field, LongString, Reader, ShortString, Writer};
                use super::super::errors::{DecodeError, EncodeError};
                use super::{Method, MethodId};

                $($(pub use super::super::kinds::$class::$kind;)+)?

                $(
                    $(#[$doc])*
                    #[doc = concat!("\n\nThe method `", $wire_name, "` of AMQP: class ",
                        stringify!($class_id), ", method ", stringify!($id), ".")]
                    #[derive(Debug, Clone, PartialEq)]
                    #[non_exhaustive]
                    pub struct $name {
                        $(
                            $(#[$field_doc])*
                            $(#[doc = default_doc!($default)])?
                            pub $field: $ty,
                        )*
                    }

                    impl $name {
                        /// The class and method number.
                        pub const ID: MethodId = MethodId::new($class_id, $id);

                        $(constructor! { $($new)* })?

                        $(setter! {
                            #[doc = concat!("Sets the field `", stringify!($field), "`.\n")]
                            $(#[$field_doc])*
                            $(#[doc = default_doc!($default)])?
                            $field: $ty
                        })*

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

                    from_arguments! { $name $($($new)*)? }

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

        /// Any method of AMQP 0-9-1 or of RabbitMQ's extensions to it.
        ///
        /// The calls of a channel take the structs themselves. This enum is for programs that
        /// treat methods as values: see
        /// [`send_method`](crate::BlockingConnection::send_method).
        ///
        /// ```
        /// use cony::{Method, queue};
        ///
        /// let method = Method::from(queue::Declare::new("tasks"));
        /// assert_eq!(method.id().to_string(), "queue.declare");
        /// let declare = queue::Declare::try_from(method);
        /// assert_eq!(declare, Ok(queue::Declare::new("tasks")));
        /// ```
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Method {
            $($(
                #[doc = concat!("The method `", $wire_name, "`.")]
                $variant($class::$name),
            )*)*
        }

        impl Method {
            /// Returns the class and method number.
            pub fn id(&self) -> MethodId {
                match self {
                    $($(Self::$variant(_) => $class::$name::ID,)*)*
                }
            }

            /// Returns the ids of the possible replies. The slice is empty for a method that
            /// has no reply, or whose `nowait` is set.
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

            /// Reads the arguments of the method `id`. Returns `None` if no method has this id.
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
            /// Returns the name in the specification, such as `queue.declare`, or `None` if
            /// neither AMQP 0-9-1 nor RabbitMQ has such a method.
            pub fn name(self) -> Option<&'static str> {
                match (self.class, self.method) {
                    $($(($class_id, $id) => Some($wire_name),)*)*
                    _ => None,
                }
            }
        }

        /// Returns every method with its defaults.
        #[cfg(test)]
        pub(crate) fn every_method() -> Vec<Method> {
            vec![$($($class::$name::default().into(),)*)*]
        }
    };
}

/// Expands to the id of a reply, which belongs to the class of its method.
macro_rules! reply_id {
    ($class:ident $reply:ident) => {
        $class::$reply::ID
    };
}

/// Expands to the default of a field.
macro_rules! default_value {
    () => {
        Default::default()
    };
    ($default:expr) => {
        $default
    };
}

/// Expands to the sentence of the documentation that gives a field's default.
macro_rules! default_doc {
    ($default:expr) => {
        concat!("\n\nDefault: `", stringify!($default), "`.")
    };
}

/// Expands to the builder method of a field. Strings, tables and names of types are given as any
/// value that converts into them.
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
    ($(#[$doc:meta])* $field:ident: Type) => {
        setter! { @into $(#[$doc])* $field: Type }
    };
    ($(#[$doc:meta])* arguments: FieldTable) => {
        setter! { @into $(#[$doc])* arguments: FieldTable }

        /// Adds one argument to `arguments`, or replaces it.
        #[must_use]
        pub fn argument(
            mut self,
            name: impl Into<ShortString>,
            value: impl Into<FieldValue>,
        ) -> Self {
            self.arguments.insert(name, value);
            self
        }
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

/// Expands to `new`, which takes the arguments that nearly every call needs.
macro_rules! constructor {
    ($($arg:ident: ShortString),+) => {
        /// Creates the method with these arguments. Every other field has its default.
        #[must_use]
        pub fn new($($arg: impl Into<ShortString>),+) -> Self {
            Self::default()$(.$arg($arg))+
        }
    };
    ($arg:ident: $ty:ident) => {
        /// Creates the method with this argument. Every other field has its default.
        #[must_use]
        pub fn new($arg: $ty) -> Self {
            Self::default().$arg($arg)
        }
    };
}

/// Expands to the conversions from the arguments of `new`: from the value itself where `new`
/// takes one, from a tuple where it takes three.
macro_rules! from_arguments {
    ($name:ident $arg:ident: ShortString) => {
        from_arguments! { @from $name &str, String, &String, ShortString, &ShortString }
    };
    (@from $name:ident $($ty:ty),+) => { $(
        impl From<$ty> for $name {
            fn from(argument: $ty) -> Self {
                Self::new(argument)
            }
        }
    )+ };
    ($name:ident $a:ident: ShortString, $b:ident: ShortString, $c:ident: ShortString) => {
        /// Creates the method from the arguments of [`new`](Self::new), in the same order.
        impl<A, B, C> From<(A, B, C)> for $name
        where
            A: Into<ShortString>,
            B: Into<ShortString>,
            C: Into<ShortString>,
        {
            fn from(($a, $b, $c): (A, B, C)) -> Self {
                Self::new($a, $b, $c)
            }
        }
    };
    ($name:ident $arg:ident: $ty:ident) => {
        from_arguments! { @from $name $ty }
    };
    ($name:ident) => {};
}
