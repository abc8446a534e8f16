//! For services of tests that differ from another one in a method or two.

/// These methods of `opendal::raw::Service`, as the service in the field `inner` has them.
macro_rules! forward {
    ($($method:ident)+) => {
        $($crate::store::forward::method!($method);)+
    };
}

/// One of them.
macro_rules! method {
    (capability) => {
        fn capability(&self) -> opendal::Capability {
            self.inner.capability()
        }
    };
    (create_dir) => {
        $crate::store::forward::method!(async create_dir, path, OpCreateDir -> RpCreateDir);
    };
    (stat) => {
        $crate::store::forward::method!(async stat, path, OpStat -> RpStat);
    };
    (presign) => {
        $crate::store::forward::method!(async presign, path, OpPresign -> RpPresign);
    };
    (read) => {
        $crate::store::forward::method!(read, path, OpRead -> Reader);
    };
    (write) => {
        $crate::store::forward::method!(write, path, OpWrite -> Writer);
    };
    (list) => {
        $crate::store::forward::method!(list, path, OpList -> Lister);
    };
    (delete) => {
        fn delete(&self, ctx: &opendal::OperationContext) -> opendal::Result<Self::Deleter> {
            self.inner.delete(ctx)
        }
    };
    (copy) => {
        fn copy(
            &self,
            ctx: &opendal::OperationContext,
            from: &str,
            to: &str,
            args: opendal::raw::OpCopy,
        ) -> opendal::Result<Self::Copier> {
            self.inner.copy(ctx, from, to, args)
        }
    };
    (rename) => {
        async fn rename(
            &self,
            ctx: &opendal::OperationContext,
            from: &str,
            to: &str,
            args: opendal::raw::OpRename,
        ) -> opendal::Result<opendal::raw::RpRename> {
            self.inner.rename(ctx, from, to, args).await
        }
    };
    (async $name:ident, path, $args:ident -> $answer:ident) => {
        async fn $name(
            &self,
            ctx: &opendal::OperationContext,
            path: &str,
            args: opendal::raw::$args,
        ) -> opendal::Result<opendal::raw::$answer> {
            self.inner.$name(ctx, path, args).await
        }
    };
    ($name:ident, path, $args:ident -> $answer:ident) => {
        fn $name(
            &self,
            ctx: &opendal::OperationContext,
            path: &str,
            args: opendal::raw::$args,
        ) -> opendal::Result<Self::$answer> {
            self.inner.$name(ctx, path, args)
        }
    };
}

pub(crate) use {forward, method};
