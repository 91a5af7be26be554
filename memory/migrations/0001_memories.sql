-- Memories and the collections they are found in. A collection records the model that made its
-- vectors and their dimension: vectors of different models cannot be compared.
create extension if not exists vector;

create table lakemesh.collections (
    id          smallint generated always as identity primary key,
    name        text not null,
    model       text not null,
    dimension   integer not null check (dimension between 1 and 2000),
    create_time timestamptz not null default now(),
    unique (name, model)
);

create table lakemesh.memories (
    id            uuid primary key,
    collection_id smallint not null references lakemesh.collections (id),
    agent_id      text not null,
    request_id    text,
    text          text not null,
    metadata      jsonb not null default '{}',
    -- Without a fixed dimension: each collection has its own partial index that casts to its own.
    embedding     vector not null,
    create_time   timestamptz not null default now()
);

-- Beside the row when it fits, not in another table: 512 numbers are 2 KB. Nothing is estimated from
-- their distribution, so statistics of them would be work for nothing.
alter table lakemesh.memories alter column embedding set storage main;
alter table lakemesh.memories alter column embedding set statistics 0;

-- Small agents are answered exactly, through this index, whatever the size of the others.
create index memories_by_agent on lakemesh.memories (collection_id, agent_id, create_time desc);

create unique index memories_by_request on lakemesh.memories (agent_id, request_id)
    where request_id is not null;

create index memories_by_metadata on lakemesh.memories using gin (metadata jsonb_path_ops);
