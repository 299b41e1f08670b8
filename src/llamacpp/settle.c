/* From the rows of the mask to lists of cells. */
#include "llamacpp/step.h"

#include "llamacpp/plugin.h"

enum {
    SPARE_TOKENS = 256, /* a list is cut back by so many tokens at most; beyond that another one is begun */
    REBUILD_TOKENS = 64 /* more than that read anew is a rebuild */
};

static const uint16_t *mask_row(const stream_step *step, uint32_t row)
{
    const struct ggml_tensor *const mask = step->node->src[3];
    return (const uint16_t *)((const char *)mask->data + row * mask->nb[1] +
                              (mask->ne[3] == 1 ? 0 : (size_t)step->index * mask->nb[3]));
}

static uint32_t cell_of(const stream_step *step, uint32_t row)
{
    return (uint32_t)(step->cell[row] - step->first_cell);
}

/* Sorts the rows into groups: a row belongs to the sequence whose first new token it sees. */
static bool group_rows(stream_step *step)
{
    step->n_groups = 0;
    if (!step->cell) {
        step->groups[0] = (query_group){.n = 1};
        step->n_groups = 1;
        step->group_of[0] = 0;
        return step->n_rows == 1;
    }
    for (uint32_t r = 0; r < step->n_rows; r++) {
        const uint16_t *const mask = mask_row(step, r);
        const int64_t own = step->cell[r] - step->first_cell;
        if (own < 0 || own >= step->n_kv || mask[own] != MASK_SEEN) return false;
        uint32_t group = step->n_groups;
        for (uint32_t g = 0; g < step->n_groups; g++) {
            if (mask[cell_of(step, step->groups[g].first)] != MASK_SEEN) continue;
            if (group < step->n_groups) return false; /* a token of two sequences */
            group = g;
        }
        if (group == GROUPS) return false;
        if (group == step->n_groups) step->groups[step->n_groups++] = (query_group){.first = r};
        step->groups[group].n++;
        step->groups[group].last = r;
        step->group_of[r] = group;
    }
    return true;
}

uint32_t step_next_row(const stream_step *step, uint32_t group, uint32_t row)
{
    do row++;
    while (step->group_of[row] != group);
    return row;
}

/* Shows or hides the group's cells, from a row on, in a list's mask. */
static void mark_cells(const stream_step *step, uint32_t group, uint32_t row, cell_list *list, uint16_t value)
{
    if (!step->cell) return;
    for (;; row = step_next_row(step, group, row)) {
        list->mask[cell_of(step, row)] = value;
        if (row == step->groups[group].last) break;
    }
}

static bool any_in_list(const stream_step *step, uint32_t group, const cell_list *list)
{
    for (uint32_t r = step->groups[group].first; step->cell; r = step_next_row(step, group, r)) {
        if (list->mask[cell_of(step, r)] == MASK_SEEN) return true;
        if (r == step->groups[group].last) break;
    }
    return false;
}

static void push_cells(const stream_step *step, uint32_t group, cell_list *list)
{
    for (uint32_t r = step->groups[group].first; step->cell; r = step_next_row(step, group, r)) {
        list_push(list, cell_of(step, r));
        if (r == step->groups[group].last) break;
    }
}

/* The list with the group's new cells is what its last row sees, as while a sequence simply grows; they are added. */
static bool extends(const stream_step *step, uint32_t group, cell_list *list)
{
    const uint16_t *const mask = mask_row(step, step->groups[group].last);
    if (!step->cell || any_in_list(step, group, list)) return list_equals(list, mask, step->n_kv);
    mark_cells(step, group, step->groups[group].first, list, MASK_SEEN);
    const bool equal = list_equals(list, mask, step->n_kv);
    mark_cells(step, group, step->groups[group].first, list, MASK_HIDDEN);
    if (equal) push_cells(step, group, list);
    return equal;
}

/* Another group of this step has the list. */
static bool taken(const stream_step *step, const cell_list *list)
{
    return list->used == step->layer->calls;
}

/* The list that has most in common with what the mask shows, cut back to that where it loses little; else a new one
 * that shares what is common: the rest may belong to another sequence. */
static cell_list *adapt(const stream_step *step, const uint16_t *mask)
{
    cell_list *best = NULL;
    uint32_t common = 0;
    for (uint32_t l = 0; l < step->stream->n_lists; l++) {
        cell_list *const list = step->stream->list[l];
        const uint32_t n = list_common(list, mask, step->n_kv);
        if (n < common || (n == common && (n == 0 || list->n >= best->n))) continue;
        best = list;
        common = n;
    }
    if (best && !taken(step, best) && best->n - common <= SPARE_TOKENS) {
        list_truncate(best, common);
        return best;
    }
    cell_list *const fresh = cache_new_list(step->layer, step->stream, best);
    if (fresh && best) list_fork(fresh, best, common);
    return fresh;
}

/* Makes a list what the group's last row sees, whatever happened: new cells come in order of their numbers, the
 * group's own last. */
static cell_list *rebuild(stream_step *step, uint32_t group)
{
    const uint16_t *const mask = mask_row(step, step->groups[group].last);
    cell_list *const list = adapt(step, mask);
    if (!list) return NULL;
    if (any_in_list(step, group, list)) list_truncate(list, 0); /* written anew, so that they belong at the end */
    const uint32_t before = list->n;
    mark_cells(step, group, step->groups[group].first, list, MASK_SEEN);
    uint32_t n = 0;
    for (uint32_t c = 0; c < step->n_kv; c++)
        if (mask[c] == MASK_SEEN && list->mask[c] != MASK_SEEN) list_push(list, c), n++;
    mark_cells(step, group, step->groups[group].first, list, MASK_HIDDEN);
    push_cells(step, group, list);
    if (n > REBUILD_TOKENS) {
        atomic_fetch_add(&plugin.counters.rebuilds, before > 0);
        step->layer->patience--;
    }
    return list_equals(list, mask, step->n_kv) ? list : NULL;
}

bool step_settle(stream_step *step)
{
    if (!group_rows(step)) return false;
    for (uint32_t g = 0; g < step->n_groups; g++) {
        cell_list *list = NULL;
        for (uint32_t l = 0; l < step->stream->n_lists && !list; l++)
            if (!taken(step, step->stream->list[l]) && extends(step, g, step->stream->list[l]))
                list = step->stream->list[l];
        if (!list) list = rebuild(step, g);
        if (!list) return false;
        list->used = step->layer->calls;
        step->groups[g].list = list;
    }
    return true;
}

bool step_causal(const stream_step *step, uint32_t group)
{
    const query_group *const g = &step->groups[group];
    bool ok = true;
    for (uint32_t r = g->first; r != g->last && ok; r = step_next_row(step, group, r)) {
        mark_cells(step, group, step_next_row(step, group, r), g->list, MASK_HIDDEN);
        ok = list_equals(g->list, mask_row(step, r), step->n_kv);
        mark_cells(step, group, step_next_row(step, group, r), g->list, MASK_SEEN);
    }
    return ok;
}
