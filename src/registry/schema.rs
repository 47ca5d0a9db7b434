//! The registry's tables as diesel sees them; `migrations/` creates them.

diesel::table! {
    registry_state (singleton) {
        singleton -> Bool,
        revision -> Int8,
    }
}

diesel::table! {
    services (id) {
        id -> Int4,
        name -> Text,
        team -> Nullable<Text>,
        contact -> Nullable<Text>,
        created_at -> Timestamptz,
        retired_at -> Nullable<Timestamptz>,
        retired_by -> Nullable<Text>,
    }
}

diesel::table! {
    sources (id) {
        id -> Int4,
        name -> Text,
        url -> Text,
        epoch -> Int2,
        state -> Text,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    source_slots (source_id) {
        source_id -> Int4,
        system_identifier -> Text,
        timeline -> Int4,
        confirmed -> Int8,
        heartbeat_lsn -> Nullable<Int8>,
        heartbeat_id -> Nullable<Text>,
        broken -> Nullable<Text>,
    }
}

diesel::table! {
    service_roles (source_id, role) {
        source_id -> Int4,
        role -> Text,
        service_id -> Int4,
    }
}

diesel::table! {
    datasets (id) {
        id -> Int4,
        source_id -> Int4,
        schema_name -> Text,
        table_name -> Text,
        owner_id -> Int4,
        mode -> Text,
        description -> Nullable<Text>,
        tags -> Array<Text>,
        // A column named `columns` would collide with diesel's module of that name.
        #[sql_name = "columns"]
        column_facts -> Jsonb,
        derived_from -> Array<Text>,
        guard -> Text,
        owned -> Nullable<Bool>,
        released_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    ownership_periods (dataset_id, service_id, during) {
        dataset_id -> Int4,
        service_id -> Int4,
        during -> Tstzrange,
        present -> Nullable<Bool>,
        reason -> Nullable<Text>,
        actor -> Nullable<Text>,
        transfer_id -> Nullable<Int8>,
    }
}

diesel::table! {
    ownership_switches (dataset_id, position) {
        dataset_id -> Int4,
        position -> Text,
        owner_before -> Nullable<Text>,
        owner -> Text,
        mode_before -> Nullable<Text>,
        mode -> Text,
        transfer_id -> Nullable<Int8>,
    }
}

diesel::table! {
    violations (id) {
        id -> Int8,
        source_id -> Int4,
        epoch -> Int2,
        lsn -> Int8,
        at -> Timestamptz,
        verdict -> Text,
        operation -> Text,
        dataset -> Text,
        service -> Nullable<Text>,
        role -> Text,
        login -> Text,
        application -> Nullable<Text>,
        client -> Nullable<Text>,
        traceparent -> Nullable<Text>,
    }
}

diesel::table! {
    subscriptions (id) {
        id -> Int4,
        name -> Text,
        service_id -> Int4,
        datasets -> Array<Text>,
        spec -> Jsonb,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    tokens (number) {
        number -> Int8,
        id -> Text,
        digest -> Bytea,
        role -> Text,
        service_id -> Nullable<Int4>,
        description -> Nullable<Text>,
        created_at -> Timestamptz,
        created_by -> Text,
        expires_at -> Nullable<Timestamptz>,
        revoked_at -> Nullable<Timestamptz>,
        last_used_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    findings (id) {
        id -> Int8,
        source_id -> Int4,
        question -> Text,
        kind -> Text,
        severity -> Text,
        dataset -> Nullable<Text>,
        object -> Text,
        found -> Text,
        expected -> Text,
        mend -> Nullable<Text>,
        first_seen_at -> Timestamptz,
        last_seen_at -> Timestamptz,
        repaired_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    guard_baselines (source_id) {
        source_id -> Int4,
        version -> Text,
        objects -> Jsonb,
        sound_lsn -> Nullable<Int8>,
    }
}

diesel::table! {
    guard_gaps (dataset_id, epoch, told_lsn) {
        dataset_id -> Int4,
        epoch -> Int2,
        told_lsn -> Int8,
        from_lsn -> Int8,
        to_lsn -> Nullable<Int8>,
        closed_at -> Nullable<Timestamptz>,
    }
}

diesel::joinable!(findings -> sources (source_id));
diesel::table! {
    break_glass (id) {
        id -> Uuid,
        dataset_id -> Int4,
        service_id -> Int4,
        reason -> Text,
        granted_by -> Text,
        granted_at -> Timestamptz,
        expires_at -> Timestamptz,
        revoked_at -> Nullable<Timestamptz>,
        revoked_by -> Nullable<Text>,
    }
}

diesel::joinable!(break_glass -> datasets (dataset_id));
diesel::joinable!(break_glass -> services (service_id));
diesel::joinable!(datasets -> sources (source_id));
diesel::joinable!(datasets -> services (owner_id));
diesel::joinable!(service_roles -> sources (source_id));
diesel::joinable!(ownership_periods -> services (service_id));
diesel::joinable!(ownership_switches -> datasets (dataset_id));
diesel::joinable!(subscriptions -> services (service_id));
diesel::joinable!(tokens -> services (service_id));
diesel::allow_tables_to_appear_in_same_query!(
    break_glass,
    services,
    sources,
    findings,
    service_roles,
    datasets,
    ownership_periods,
    ownership_switches,
    subscriptions,
    tokens
);
