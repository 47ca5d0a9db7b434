//! For stores of tests that change little: the rest is done by the store inside.

/// The parts of a store that a test does not change, done by the store inside.
macro_rules! rest_by {
    ($inner:tt) => {
        fn extent(&self, source: SourceId) -> BoxFuture<'_, Result<Extent, Error>> {
            self.$inner.extent(source)
        }
        fn read_row<'a>(
            &'a self,
            source: SourceId,
            after: Position,
            dataset: DatasetId,
            key: &'a Key,
            bytes: usize,
        ) -> BoxFuture<'a, Result<Page, Error>> {
            self.$inner.read_row(source, after, dataset, key, bytes)
        }
        fn key_columns(
            &self,
            source: SourceId,
            dataset: DatasetId,
        ) -> BoxFuture<'_, Result<Option<Vec<String>>, Error>> {
            self.$inner.key_columns(source, dataset)
        }
        fn position_at(
            &self,
            source: SourceId,
            at: DateTime<Utc>,
        ) -> BoxFuture<'_, Result<Option<Position>, Error>> {
            self.$inner.position_at(source, at)
        }
        fn cut(
            &self,
            source: SourceId,
            upto: Position,
            reason: GapReason,
        ) -> BoxFuture<'_, Result<(), Error>> {
            self.$inner.cut(source, upto, reason)
        }
        fn cut_reason(&self, source: SourceId) -> BoxFuture<'_, Result<GapReason, Error>> {
            self.$inner.cut_reason(source)
        }
        fn prepare(&self) -> BoxFuture<'_, Result<(), Error>> {
            self.$inner.prepare()
        }
        fn sweep(&self) -> BoxFuture<'_, Result<(), Error>> {
            self.$inner.sweep()
        }
        fn days(&self) -> BoxFuture<'_, Result<Vec<Day>, Error>> {
            self.$inner.days()
        }
        fn freeing(
            &self,
            source: SourceId,
            bytes: u64,
        ) -> BoxFuture<'_, Result<Option<Position>, Error>> {
            self.$inner.freeing(source, bytes)
        }
        fn totals(&self, source: SourceId) -> BoxFuture<'_, Result<Totals, Error>> {
            self.$inner.totals(source)
        }
        fn protect<'a>(
            &'a self,
            source: SourceId,
            holder: &'a str,
            position: Position,
        ) -> BoxFuture<'a, Result<(), Error>> {
            self.$inner.protect(source, holder, position)
        }
        fn unprotect<'a>(
            &'a self,
            source: SourceId,
            holder: &'a str,
        ) -> BoxFuture<'a, Result<(), Error>> {
            self.$inner.unprotect(source, holder)
        }
        fn protections(&self, source: SourceId) -> BoxFuture<'_, Result<Vec<Protection>, Error>> {
            self.$inner.protections(source)
        }
        fn prove(
            &self,
            source: SourceId,
            from: Position,
            to: Position,
            bytes: usize,
        ) -> BoxFuture<'_, Result<Proof, Error>> {
            self.$inner.prove(source, from, to, bytes)
        }
    };
}
