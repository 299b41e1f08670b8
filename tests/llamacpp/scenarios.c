/* The scenarios, each after what it depends on. */
#include "scenarios.h"

#include <stdlib.h>
#include <string.h>

#include "../suite.h"

static llama_token token_at(int text, int position)
{
    uint32_t x = (uint32_t)(text * 7919 + position) * 2654435761u;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    return (llama_token)(2 + x % 500);
}

static llama_memory_t memory(const run *r)
{
    return llama_get_memory(r->ctx);
}

/* One batch under construction. */
typedef struct batch {
    struct llama_batch b;
} batch;

static batch batch_begin(void)
{
    return (batch){llama_batch_init(CONTEXT, 0, SLOTS)};
}

static void add(batch *batch, llama_token token, llama_pos pos, llama_seq_id seq, bool output)
{
    struct llama_batch *const b = &batch->b;
    b->token[b->n_tokens] = token;
    b->pos[b->n_tokens] = pos;
    b->n_seq_id[b->n_tokens] = 1;
    b->seq_id[b->n_tokens][0] = seq;
    b->logits[b->n_tokens++] = output;
}

/* Decodes, and keeps the logits of every output. */
static void decode(run *r, batch *batch)
{
    ck_assert_int_eq(llama_decode(r->ctx, batch->b), 0);
    for (int i = 0; i < batch->b.n_tokens; i++) {
        if (!batch->b.logits[i]) continue;
        ck_assert_int_lt(r->n, MAX_LOGITS);
        memcpy(r->logits + (size_t)r->n++ * (size_t)r->n_vocab, llama_get_logits_ith(r->ctx, i),
               (size_t)r->n_vocab * sizeof(float));
    }
    llama_batch_free(batch->b);
}

void prompt(run *r, int text, int first, int last, llama_seq_id seq)
{
    batch b = batch_begin();
    for (int i = first; i < last; i++) add(&b, token_at(text, i), i, seq, i + 1 == last);
    decode(r, &b);
}

void steps(run *r, int text, int first, int last, llama_seq_id seq)
{
    for (int i = first; i < last; i++) prompt(r, text, i, i + 1, seq);
}

void grow(run *r)
{
    prompt(r, 1, 0, LONG, 0);
    steps(r, 1, LONG, LONG + 8, 0);
    prompt(r, 1, LONG + 8, LONG + 400, 0);
    steps(r, 1, LONG + 400, LONG + 404, 0);
}

/* llama.cpp may name another number of threads for every graph, one for batches and one for single tokens. */
void grow_on_other_threads(run *r)
{
    llama_set_n_threads(r->ctx, 2, 1);
    prompt(r, 1, 0, LONG, 0);
    for (int i = LONG; i < LONG + 8; i++) {
        llama_set_n_threads(r->ctx, 1 + i % 3, 3 - i % 3);
        steps(r, 1, i, i + 1, 0);
    }
    prompt(r, 1, LONG + 8, LONG + 400, 0);
    steps(r, 1, LONG + 400, LONG + 404, 0);
}

void remove_tail(run *r)
{
    prompt(r, 1, 0, LONG, 0);
    steps(r, 1, LONG, LONG + 6, 0);
    ck_assert(llama_memory_seq_rm(memory(r), 0, LONG - 50, -1));
    steps(r, 2, LONG - 50, LONG - 40, 0); /* other tokens in the same cells */
    ck_assert(llama_memory_seq_rm(memory(r), 0, LONG - 41, -1));
    steps(r, 3, LONG - 41, LONG - 38, 0); /* the last one alone: the mask looks as before */
}

static void clear_data(run *r, bool data)
{
    prompt(r, 1, 0, LONG, 0);
    steps(r, 1, LONG, LONG + 4, 0);
    llama_memory_clear(memory(r), data);
    prompt(r, 2, 0, LONG, 0);
    steps(r, 2, LONG, LONG + 4, 0);
}

void clear_all(run *r)
{
    clear_data(r, true);
}

void clear_cells(run *r)
{
    clear_data(r, false);
}

void restore_state(run *r)
{
    prompt(r, 1, 0, LONG, 0);
    steps(r, 1, LONG, LONG + 4, 0);
    const size_t size = llama_state_get_size(r->ctx);
    uint8_t *const state = malloc(size);
    ck_assert_uint_eq(llama_state_get_data(r->ctx, state, size), size);
    llama_memory_clear(memory(r), false);
    prompt(r, 2, 0, LONG, 0);
    steps(r, 2, LONG, LONG + 4, 0);
    ck_assert_uint_gt(llama_state_set_data(r->ctx, state, size), 0);
    steps(r, 1, LONG + 4, LONG + 8, 0); /* as many cells, in the same places, with other tokens in them */
    free(state);
}

void restore_sequence(run *r)
{
    prompt(r, 1, 0, LONG, 0);
    const size_t size = llama_state_seq_get_size(r->ctx, 0);
    uint8_t *const state = malloc(size);
    ck_assert_uint_gt(llama_state_seq_get_data(r->ctx, state, size, 0), 0);
    llama_memory_seq_rm(memory(r), 0, -1, -1);
    prompt(r, 2, 0, LONG, 0);
    steps(r, 2, LONG, LONG + 3, 0);
    llama_memory_seq_rm(memory(r), 0, -1, -1);
    ck_assert_uint_gt(llama_state_seq_set_data(r->ctx, state, size, 0), 0);
    steps(r, 1, LONG, LONG + 4, 0);
    free(state);
}

/* As llama-bench does before each round: most of what is written is there already. */
void restore_in_place(run *r)
{
    prompt(r, 1, 0, LONG, 0);
    const size_t size = llama_state_seq_get_size(r->ctx, 0);
    uint8_t *const state = malloc(size);
    ck_assert_uint_gt(llama_state_seq_get_data(r->ctx, state, size, 0), 0);
    for (int round = 0; round < 3; round++) {
        steps(r, 1, LONG, LONG + 3, 0);
        llama_memory_clear(memory(r), false);
        if (round == 1) prompt(r, 2, 0, 500, 0);
        ck_assert_uint_gt(llama_state_seq_set_data(r->ctx, state, size, 0), 0);
    }
    steps(r, 2, LONG, LONG + 3, 0);
    free(state);
}

void shift(run *r)
{
    prompt(r, 1, 0, LONG, 0);
    steps(r, 1, LONG, LONG + 4, 0);
    ck_assert(llama_memory_seq_rm(memory(r), 0, 100, 300));
    llama_memory_seq_add(memory(r), 0, 300, -1, -200);
    steps(r, 1, LONG - 196, LONG - 190, 0);
}

/* Nothing shows in the mask. */
void shift_in_place(run *r)
{
    prompt(r, 1, 0, LONG, 0);
    steps(r, 1, LONG, LONG + 4, 0);
    llama_memory_seq_add(memory(r), 0, 300, -1, 50);
    steps(r, 1, LONG + 54, LONG + 60, 0);
}

/* Tokens of a draft that are verified together; some are taken back. */
void drafts(run *r)
{
    prompt(r, 1, 0, LONG, 0);
    int at = LONG;
    for (int round = 0; round < 4; round++) {
        batch b = batch_begin();
        for (int i = 0; i < 5; i++) add(&b, token_at(10 + round, at + i), at + i, 0, true);
        decode(r, &b);
        at += 1 + round;
        ck_assert(llama_memory_seq_rm(memory(r), 0, at, -1));
    }
    steps(r, 1, at, at + 3, 0);
}

/* Several sequences take turns, prompts and decoding mixed, one ends and another takes its place. */
void slots(run *r)
{
    static const int length[SLOTS] = {LONG, 350, 700, 20};
    int at[SLOTS];
    for (int s = 0; s < SLOTS; s++) prompt(r, 20 + s, 0, at[s] = length[s], s);
    for (int step = 0; step < 4; step++) {
        batch b = batch_begin();
        for (int s = 0; s < SLOTS; s++) add(&b, token_at(20 + s, at[s]), at[s], s, true), at[s]++;
        decode(r, &b);
    }
    ck_assert(llama_memory_seq_rm(memory(r), 2, -1, -1));
    batch mixed = batch_begin();
    add(&mixed, token_at(20, at[0]), at[0], 0, true), at[0]++;
    for (int i = 0; i < 600; i++) add(&mixed, token_at(30, i), i, 2, i == 599);
    add(&mixed, token_at(21, at[1]), at[1], 1, true), at[1]++;
    decode(r, &mixed);
    at[2] = 600;
    for (int step = 0; step < 4; step++) {
        batch b = batch_begin();
        for (int s = 2; s >= 0; s--) add(&b, token_at(s == 2 ? 30 : 20 + s, at[s]), at[s], s, true), at[s]++;
        decode(r, &b);
    }
    steps(r, 20, at[0], at[0] + 2, 0);
}

/* More slots than most servers have. */
void many_slots(run *r)
{
    enum { MANY = 20, SHORT = 150 };
    int at[MANY];
    for (int s = 0; s < MANY; s++) prompt(r, 40 + s, 0, at[s] = s ? SHORT : LONG, s);
    for (int step = 0; step < 3; step++) {
        batch b = batch_begin();
        for (int s = 0; s < MANY; s++) add(&b, token_at(40 + s, at[s]), at[s], s, true), at[s]++;
        decode(r, &b);
    }
}

/* Two long sequences take turns where there is memory for the copy of one. */
void slots_in_little_memory(run *r)
{
    prompt(r, 20, 0, LONG, 0);
    steps(r, 20, LONG, LONG + 2, 0);
    for (int s = 1; s < 3; s++) {
        prompt(r, 20 + s, 0, LONG, s);
        steps(r, 20 + s, LONG, LONG + 3, s);
    }
    steps(r, 20, LONG + 2, LONG + 4, 0);
}

/* Two sequences go on from one beginning. */
void copy_sequence(run *r)
{
    prompt(r, 3, 0, LONG, 1); /* another that ends before, as long */
    steps(r, 3, LONG, LONG + 2, 1);
    ck_assert(llama_memory_seq_rm(memory(r), 1, -1, -1));
    prompt(r, 1, 0, LONG, 0);
    steps(r, 1, LONG, LONG + 2, 0);
    llama_memory_seq_cp(memory(r), 0, 1, -1, -1);
    for (int i = LONG + 2; i < LONG + 8; i++) {
        batch b = batch_begin();
        add(&b, token_at(1, i), i, 0, true);
        add(&b, token_at(2, i), i, 1, true);
        decode(r, &b);
    }
    ck_assert(llama_memory_seq_rm(memory(r), 0, -1, -1));
    steps(r, 2, LONG + 8, LONG + 11, 1);
}
