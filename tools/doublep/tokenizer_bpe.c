/* tokenizer_bpe.c: byte-pair merging. The pre-token is a linked list of symbols; a heap holds the candidates, each as
 * one number, rank * 2^32 + position, so that its order is that of the merges. A candidate is stale, and skipped, when
 * the symbol at its position has another right-hand pair by now. */
#include "tokenizer_bpe.h"

#include <stdlib.h>
#include <string.h>

typedef struct merge {
    uint64_t pair; /* left * 2^32 + right */
    uint32_t rank; /* + 1; 0: the slot is free */
} merge;

struct tokenizer_bpe {
    const tokenizer_texts *texts;
    int32_t *pieces; /* open addressing: ids, -1 free */
    size_t piece_mask;
    merge *merges; /* open addressing */
    size_t merge_mask;
    int32_t *merged; /* by rank */
    uint32_t n_merges;
    int32_t byte_piece[256];
};

typedef struct tokenizer_symbol {
    int32_t id;
    uint32_t previous, next; /* NONE at the ends */
    uint32_t rank;           /* of the pair with the next symbol; NONE where there is no such merge, or when absorbed */
} symbol;

static const uint32_t NONE = UINT32_MAX;

/* Slots for n entries, at most half full. */
static size_t table_size(uint64_t n)
{
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    return size;
}

tokenizer_bpe *tokenizer_bpe_create(const tokenizer_texts *texts, uint64_t n_merges)
{
    tokenizer_bpe *bpe = calloc(1, sizeof *bpe);
    if (!bpe) return NULL;
    const size_t n_pieces = table_size((uint64_t)texts->count), n_slots = table_size(n_merges);
    bpe->texts = texts;
    bpe->pieces = malloc(n_pieces * sizeof *bpe->pieces);
    bpe->piece_mask = n_pieces - 1;
    bpe->merges = calloc(n_slots, sizeof *bpe->merges);
    bpe->merge_mask = n_slots - 1;
    bpe->merged = malloc((n_merges + 1) * sizeof *bpe->merged);
    if (!bpe->pieces || !bpe->merges || !bpe->merged) {
        tokenizer_bpe_free(bpe);
        return NULL;
    }
    memset(bpe->pieces, 0xff, n_pieces * sizeof *bpe->pieces);
    memset(bpe->byte_piece, 0xff, sizeof bpe->byte_piece);
    return bpe;
}

void tokenizer_bpe_free(tokenizer_bpe *bpe)
{
    if (!bpe) return;
    free(bpe->pieces);
    free(bpe->merges);
    free(bpe->merged);
    free(bpe);
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}

/* The slot that holds the text, or the free one where it belongs. */
static size_t piece_slot(const tokenizer_bpe *bpe, const char *text, size_t length)
{
    uint64_t hash = length;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3u;
    for (size_t slot = mix(hash) & bpe->piece_mask;; slot = (slot + 1) & bpe->piece_mask) {
        const int32_t id = bpe->pieces[slot];
        if (id < 0) return slot;
        const size_t start = bpe->texts->offset[id], end = bpe->texts->offset[id + 1];
        if (end - start == length && memcmp(bpe->texts->bytes + start, text, length) == 0) return slot;
    }
}

void tokenizer_bpe_add_piece(tokenizer_bpe *bpe, int32_t id)
{
    const char *text = bpe->texts->bytes + bpe->texts->offset[id];
    const size_t length = bpe->texts->offset[id + 1] - bpe->texts->offset[id];
    const size_t slot = piece_slot(bpe, text, length);
    if (bpe->pieces[slot] >= 0) return;
    bpe->pieces[slot] = id;
    if (length == 1) bpe->byte_piece[(unsigned char)text[0]] = id;
}

int32_t tokenizer_bpe_find(const tokenizer_bpe *bpe, const char *text, size_t length)
{
    return bpe->pieces[piece_slot(bpe, text, length)];
}

static merge *merge_slot(const tokenizer_bpe *bpe, int32_t left, int32_t right)
{
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t slot = mix(pair * 0xff51afd7ed558ccdu) & bpe->merge_mask;
    while (bpe->merges[slot].rank && bpe->merges[slot].pair != pair) slot = (slot + 1) & bpe->merge_mask;
    return &bpe->merges[slot];
}

void tokenizer_bpe_add_merge(tokenizer_bpe *bpe, int32_t left, int32_t right, int32_t merged)
{
    merge *slot = merge_slot(bpe, left, right);
    if (slot->rank) return;
    slot->pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    bpe->merged[bpe->n_merges++] = merged;
    slot->rank = bpe->n_merges;
}

void tokenizer_scratch_free(tokenizer_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    *scratch = (tokenizer_scratch){0};
}

/* Room for n symbols and for their candidates: n - 1 at first, and at most two more for each of n - 1 merges. */
static bool reserve(tokenizer_scratch *scratch, size_t n)
{
    if (n <= scratch->capacity) return true;
    const size_t capacity = n < 128 ? 256 : 2 * n;
    tokenizer_scratch_free(scratch);
    scratch->symbols = malloc(capacity * sizeof *scratch->symbols);
    scratch->heap = malloc(3 * capacity * sizeof *scratch->heap);
    if (!scratch->symbols || !scratch->heap) {
        tokenizer_scratch_free(scratch);
        return false;
    }
    scratch->capacity = capacity;
    return true;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t value)
{
    size_t i = (*n)++;
    for (; i > 0 && heap[(i - 1) / 2] > value; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = value;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n)
{
    const uint64_t top = heap[0], value = heap[--*n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *n; i = child) {
        if (child + 1 < *n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= value) break;
        heap[i] = heap[child];
    }
    heap[i] = value;
    return top;
}

/* Looks up the pair that starts at a symbol and makes it a candidate. */
static void consider(const tokenizer_bpe *bpe, tokenizer_scratch *scratch, size_t *n_heap, uint32_t at)
{
    symbol *s = &scratch->symbols[at];
    s->rank = NONE;
    if (s->next == NONE) return;
    const merge *found = merge_slot(bpe, s->id, scratch->symbols[s->next].id);
    if (!found->rank) return;
    s->rank = found->rank - 1;
    heap_push(scratch->heap, n_heap, (uint64_t)s->rank << 32 | at);
}

bool tokenizer_bpe_encode(const tokenizer_bpe *bpe, const char *text, size_t length, tokenizer_scratch *scratch,
                          tokenizer_ids *out)
{
    if (length == 0) return true;
    if (!reserve(scratch, length)) return false;
    symbol *symbols = scratch->symbols;
    const uint32_t n = (uint32_t)length;
    for (uint32_t i = 0; i < n; i++) {
        symbols[i].id = bpe->byte_piece[(unsigned char)text[i]];
        symbols[i].previous = i ? i - 1 : NONE;
        symbols[i].next = i + 1 < n ? i + 1 : NONE;
    }
    size_t n_heap = 0;
    for (uint32_t i = 0; i < n; i++) consider(bpe, scratch, &n_heap, i);

    while (n_heap) {
        const uint64_t candidate = heap_pop(scratch->heap, &n_heap);
        const uint32_t rank = (uint32_t)(candidate >> 32), at = (uint32_t)candidate;
        symbol *left = &symbols[at];
        if (left->rank != rank) continue;
        symbol *right = &symbols[left->next];
        left->id = bpe->merged[rank];
        left->next = right->next;
        right->rank = NONE;
        if (right->next != NONE) symbols[right->next].previous = at;
        consider(bpe, scratch, &n_heap, at);
        if (left->previous != NONE) consider(bpe, scratch, &n_heap, left->previous);
    }
    for (uint32_t i = 0; i != NONE; i = symbols[i].next)
        if (!tokenizer_ids_push(out, symbols[i].id)) return false;
    return true;
}
