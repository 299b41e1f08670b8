/* Every KV head of every step goes through its stages on its own. The member of the team that ends the last task of a stage
 * does what is not to be shared out (selecting clusters, listing rows) and opens the next stage; whoever has nothing to do
 * helps where there are tasks. What a task yields does not depend on who does it, or when.
 * With a barrier after each stage instead, two cores: 8 KV heads of 128K tokens take 1.65 ms, not 1.52, 2 KV heads of 128K
 * 0.31, not 0.27; three threads on the two cores, 32K tokens, 0.92, not 0.68. */
#include "attention/pipeline.h"

#include <sched.h>
#include <string.h>
#include <time.h>

enum { STAGE_PLAN, STAGE_SCORE, STAGE_SCAN, STAGE_GATHER, STAGE_MERGE, STAGES };

static const int time_of[STAGES] = {DP_TIME_SCORE, DP_TIME_SCORE, DP_TIME_SCAN, DP_TIME_GATHER, DP_TIME_MERGE};

/* A KV head of one of the steps, on its way through the stages. */
struct dp_unit {
    _Alignas(64) atomic_uint_least64_t ticket; /* its stage << 32 | the next task */
    atomic_size_t left;                        /* tasks of the stage that are not done */
    _Alignas(64) dp_step *step;
    size_t kv_head;
    size_t slot; /* its work memory */
    uint32_t n_tasks[STAGES]; /* of a stage, written before it opens */
};

/* Tasks [first, end) of a unit's stage. */
typedef struct task_range {
    int stage;
    size_t first, end;
} task_range;

typedef struct member {
    dp_pipeline *pipeline;
    int thread, n_threads, node;
    void *scratch;
    dp_unit *at; /* the unit it works on */
    uint64_t since, ns[DP_TIMES];
} member;

/* Pages of their own for all threads, used from the same place on. A load of a row waits for a store whose address has the same
 * last bits: dense attention at 128K tokens, two threads, takes 22.9 ms from here on, 23.7 from 1024 or 2048. */
static void take_thread_scratch(dp_pipeline *p, dp_scratch *scratch)
{
    enum { PAGE = 4096, START = 3072 };
    p->thread_bytes = (p->thread_bytes + PAGE - 1) / PAGE * PAGE;
    const uintptr_t taken =
        (uintptr_t)dp_scratch_take(scratch, 2 * PAGE + p->thread_bytes * (size_t)dp_team_size(p->runtime));
    p->thread_scratch = (char *)((taken + PAGE - 1) / PAGE * PAGE + START);
}

void dp_pipeline_carve(dp_pipeline *p, dp_scratch *scratch)
{
    p->units = dp_scratch_take(scratch, p->n_units * sizeof *p->units);
    p->first_unit = dp_scratch_take(scratch, ((size_t)p->n_arenas + 1) * sizeof *p->first_unit);
    p->opened = dp_scratch_take(scratch, (size_t)p->n_arenas * sizeof *p->opened);
    p->finished = dp_scratch_take(scratch, sizeof *p->finished);
    p->taken = dp_scratch_take(scratch, p->n_slots * sizeof *p->taken);
    p->slots = dp_scratch_take(scratch, p->n_slots * p->slot_bytes);
    take_thread_scratch(p, scratch);
}

void dp_pipeline_carve_head(const dp_step *step, dp_head_step *h, dp_scratch *scratch)
{
    const dp_sequence *const s = step->sequence;
    const dp_head *const head = h->head;
    const size_t rows = step->rows;
    h->n_positions = step->sparse ? (size_t)head->n_panels * DP_PANEL : 0;
    const size_t positions = h->n_positions * sizeof(float);
    h->q = dp_scratch_take(scratch, rows * s->format.key_dim * sizeof *h->q);
    h->offset = dp_scratch_take(scratch, rows * s->format.key_dim * sizeof *h->offset);
    h->variance = dp_scratch_take(scratch, rows * sizeof *h->variance);
    h->score = dp_scratch_take(scratch, rows * positions);
    h->mass = dp_scratch_take(scratch, rows * positions);
    const size_t capped = s->config.softcap > 0 ? rows * h->n_positions : 0;
    h->cap_slope = dp_scratch_take(scratch, capped * sizeof *h->cap_slope);
    h->spread = dp_scratch_take(scratch, capped * sizeof *h->spread);
    h->error = dp_scratch_take(scratch, positions);
    h->joint = dp_scratch_take(scratch, positions);
    h->rank = dp_scratch_take(scratch, positions);
    h->flags = dp_scratch_take(scratch, h->n_positions);
    h->reference = dp_scratch_take(scratch, rows * sizeof *h->reference);
    h->dropped = dp_scratch_take(scratch, rows * sizeof *h->dropped);
    h->pieces_capacity = dp_pieces_capacity(step, head);
    h->pieces = dp_scratch_take(scratch, h->pieces_capacity * sizeof *h->pieces);
    const size_t scannable = step->sparse && s->format.has_codes ? head->clustered : 0;
    h->codes = dp_scratch_take(scratch, rows * s->format.key_dim * DP_CODE_GROUP);
    h->sum_of_codes = dp_scratch_take(scratch, rows * sizeof *h->sum_of_codes);
    h->code_factor = dp_scratch_take(scratch, rows * sizeof *h->code_factor);
    h->sign_table = dp_scratch_take(scratch, rows * 4 * s->format.key_dim);
    h->sign_centre = dp_scratch_take(scratch, rows * sizeof *h->sign_centre);
    h->sign_factor = dp_scratch_take(scratch, rows * sizeof *h->sign_factor);
    h->deviation = dp_scratch_take(scratch, rows * sizeof *h->deviation);
    h->total = dp_scratch_take(scratch, rows * sizeof *h->total);
    h->token_limit = dp_scratch_take(scratch, rows * sizeof *h->token_limit);
    h->logit_limit = dp_scratch_take(scratch, rows * sizeof *h->logit_limit);
    h->mean_logit = dp_scratch_take(scratch, head->n_segments * rows * sizeof *h->mean_logit);
    h->scanned = dp_scratch_take(scratch, (scannable ? h->n_positions : 0) * sizeof *h->scanned);
    h->wanted = dp_scratch_take(scratch, scannable);
    h->estimated = dp_scratch_take(scratch, (h->n_positions + DP_LIST_SLACK) * sizeof *h->estimated);
    h->estimates = dp_scratch_take(scratch, (head->n_segments + (size_t)1) * sizeof *h->estimates);
    h->items_capacity = dp_items_capacity(step, head);
    h->items = dp_scratch_take(scratch, h->items_capacity * sizeof *h->items);
    h->partials = dp_scratch_take(scratch, h->items_capacity * dp_partial_floats(step) * sizeof *h->partials);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* What has passed since the last time belongs to this part of the step. */
static void account(member *m, int part)
{
    const uint64_t now = now_ns();
    m->ns[part] += now - m->since;
    m->since = now;
}

/* ---- The stages of a unit ---- */

static dp_head_step *head_of(const dp_unit *u)
{
    return &u->step->heads[u->kv_head];
}

/* The tasks of a stage that is about to open. */
static size_t count_tasks(const dp_unit *u, int stage)
{
    const dp_head_step *const h = head_of(u);
    switch (stage) {
    case STAGE_PLAN: return 0;
    case STAGE_SCORE: return h->n_tasks + h->n_exact_items; /* exact items give selection its reference */
    case STAGE_SCAN: return u->step->sparse ? dp_scan_count_tasks(h) : 0;
    case STAGE_GATHER: return h->n_items - h->n_exact_items;
    default: return u->step->rows;
    }
}

/* Item i; the rows at the start of the next one, if there is one, are fetched meanwhile. */
static void gather(const member *m, const dp_unit *u, size_t i, bool is_next, size_t next)
{
    const dp_head_step *const h = head_of(u);
    dp_gather_item((dp_gather_task){u->step, h, i}, (dp_gather_task){u->step, is_next ? h : NULL, next}, m->scratch);
}

static void run_task(member *m, const dp_unit *u, int stage, size_t i, bool is_next, size_t next)
{
    const dp_step *const step = u->step;
    const dp_head_step *const h = head_of(u);
    switch (stage) {
    case STAGE_SCORE:
        if (i < h->n_tasks) {
            const size_t task = h->first_task + i;
            dp_score_run(step, &step->tasks[task], step->task_max + task * step->rows);
        } else {
            account(m, DP_TIME_SCORE);
            gather(m, u, i - h->n_tasks, is_next, next - h->n_tasks);
            account(m, DP_TIME_GATHER);
        }
        break;
    case STAGE_SCAN: dp_scan_run(step, h, i, m->scratch); break;
    case STAGE_GATHER: gather(m, u, h->n_exact_items + i, is_next, h->n_exact_items + next); break;
    default: dp_merge_row(step, u->kv_head, i);
    }
}

/* Collects the queries of the KV head, and lists what is known before any work. */
static void plan(dp_step *step, size_t kv_head)
{
    const dp_sequence *const s = step->sequence;
    const size_t dim = s->format.key_dim, group = s->group;
    dp_head_step *const head = &step->heads[kv_head];
    for (size_t i = 0; i < step->n_queries; i++)
        memcpy(head->q + i * group * dim, step->q + (i * s->config.n_query_heads + kv_head * group) * dim,
               group * dim * sizeof *head->q);
    for (size_t r = 0; r < step->rows; r++)
        head->variance[r] =
            s->scale * s->scale *
            dp_queries_offset(&head->head->queries, step->kernels, dim, head->q + r * dim, head->offset + r * dim);
    dp_pieces_exact(step, head);
    if (step->sparse) dp_score_plan(step, kv_head);
}

static void count_slopes(const dp_step *step, dp_head_step *h)
{
    const dp_row_format *const f = &step->sequence->format;
    for (size_t i = 0; i < h->n_items; i++)
        h->counts.bytes_means += h->items[i].n_slopes * f->key_dim * (f->value_dim + sizeof(float));
}

/* What one member does when all tasks of a stage are done. */
static void close_stage(member *m, const dp_unit *u, int stage)
{
    dp_step *const step = u->step;
    dp_head_step *const h = head_of(u);
    switch (stage) {
    case STAGE_PLAN:
        dp_pipeline_carve_head(step, h, &(dp_scratch){.base = m->pipeline->slots + u->slot * m->pipeline->slot_bytes});
        plan(step, u->kv_head);
        break;
    case STAGE_SCORE:
        if (!step->sparse) break;
        dp_select(step, h);
        account(m, DP_TIME_SELECT);
        break;
    case STAGE_SCAN:
        if (step->sparse) {
            dp_sum_dropped(step, h);
            dp_pieces_selected(step, h);
        } else {
            dp_pieces_all(step, h);
        }
        account(m, DP_TIME_SCAN);
        break;
    case STAGE_GATHER: count_slopes(step, h);
    }
}

static void open_stage(dp_unit *u, int stage, size_t n)
{
    u->n_tasks[stage] = (uint32_t)n;
    atomic_store_explicit(&u->left, n, memory_order_relaxed);
    atomic_store_explicit(&u->ticket, (uint64_t)stage << 32, memory_order_release);
}

/* All tasks of a stage are done: opens the next one that has any. */
static void go_on(member *m, dp_unit *u, int stage)
{
    for (;;) {
        close_stage(m, u, stage);
        if (++stage == STAGES) break;
        const size_t n = count_tasks(u, stage);
        if (!n) continue;
        open_stage(u, stage, n);
        return;
    }
    atomic_store_explicit(&m->pipeline->taken[u->slot], m->pipeline->keeps_slots, memory_order_release);
    atomic_fetch_add_explicit(&m->pipeline->finished->next, 1, memory_order_release);
}

/* ---- Handing out work ---- */

/* Neighbouring tasks at a time, fewer and fewer towards the end: their rows mostly follow one another in memory, and where a
 * member's rows do not, it waits (dense, 128K tokens, two threads, 128 KiB to 512 KiB a task: 6 us for each task that does
 * not go on where the last one ended). False when the stage has none left. */
static bool take_tasks(const member *m, dp_unit *u, task_range *range)
{
    enum { TURNS = 4 }; /* of each member, if all are as fast */
    const uint64_t seen = atomic_load_explicit(&u->ticket, memory_order_acquire);
    const size_t next = (uint32_t)seen, n = u->n_tasks[seen >> 32];
    if (next >= n) return false;
    const size_t share = (n - next) / (TURNS * (size_t)m->n_threads), take = share ? share : 1;
    const uint64_t got = atomic_fetch_add_explicit(&u->ticket, take, memory_order_acq_rel);
    const size_t first = (uint32_t)got, of = u->n_tasks[got >> 32];
    if (first >= of) return false;
    *range = (task_range){.stage = (int)(got >> 32), .first = first, .end = of - first < take ? of : first + take};
    return true;
}

/* Does tasks of a unit's stage until there are no more to take. A member takes the next ones before it ends those it has: it
 * knows which rows come next, and the stage is not over before. */
static void work_on(member *m, dp_unit *u, task_range now)
{
    for (bool more = true; more;) {
        for (size_t i = now.first; i + 1 < now.end; i++) run_task(m, u, now.stage, i, true, i + 1);
        task_range next = {0};
        more = take_tasks(m, u, &next);
        run_task(m, u, now.stage, now.end - 1, more, next.first);
        const size_t n = now.end - now.first;
        if (!more) account(m, time_of[now.stage]);
        if (atomic_fetch_sub_explicit(&u->left, n, memory_order_acq_rel) == n) go_on(m, u, now.stage);
        now = next;
    }
}

/* Work memory for a unit, that which the member had last if it can be: it is in the core's cache (0.2 MB a KV head of 128K
 * tokens; with memory of its own for each of 8 heads a step from cold caches took 1.05 to 1.12 times as long). No member
 * leaves a unit that has tasks, so there is a slot for each but for a moment; n_slots: none. */
static size_t take_slot(const member *m)
{
    const dp_pipeline *const p = m->pipeline;
    for (size_t i = 0; i < p->n_slots; i++) {
        const size_t slot = ((size_t)m->thread + i) % p->n_slots;
        if (!atomic_load_explicit(&p->taken[slot], memory_order_relaxed) &&
            !atomic_exchange_explicit(&p->taken[slot], true, memory_order_acquire))
            return slot;
    }
    return p->n_slots;
}

/* A unit that nobody has begun with, of the member's own node first. */
static dp_unit *open_unit(const member *m)
{
    const dp_pipeline *const p = m->pipeline;
    const size_t slot = take_slot(m);
    if (slot == p->n_slots) return NULL;
    for (int turn = 0; turn < p->n_arenas; turn++) {
        const int arena = (m->node + turn) % p->n_arenas;
        const size_t n = p->first_unit[arena + 1] - p->first_unit[arena];
        dp_ticket *const opened = &p->opened[arena];
        if (atomic_load_explicit(&opened->next, memory_order_relaxed) >= n) continue;
        const size_t i = dp_ticket_take(opened);
        if (i >= n) continue;
        dp_unit *const u = &p->units[p->first_unit[arena] + i];
        u->slot = slot;
        return u;
    }
    atomic_store_explicit(&p->taken[slot], false, memory_order_release);
    return NULL;
}

/* Tasks, where there are any: of the unit at hand, of one that nobody has begun with, of any, the own node's first. */
static bool find_tasks(member *m, task_range *range)
{
    const dp_pipeline *const p = m->pipeline;
    if (m->at && take_tasks(m, m->at, range)) return true;
    while ((m->at = open_unit(m))) {
        go_on(m, m->at, STAGE_PLAN);
        if (take_tasks(m, m->at, range)) return true;
    }
    const size_t start = p->first_unit[m->node % p->n_arenas] + (size_t)m->thread;
    for (size_t i = 0; i < p->n_units; i++) {
        m->at = &p->units[(start + i) % p->n_units];
        if (take_tasks(m, m->at, range)) return true;
    }
    return false;
}

static bool all_finished(const dp_pipeline *p)
{
    return atomic_load_explicit(&p->finished->next, memory_order_acquire) == p->n_units;
}

/* Others have all the tasks there are. With more members than cores those others may have to get a core first. */
static void wait_a_little(int times)
{
    enum { SPINS = 512 }; /* 20 us: longer than most selections of a head */
    if (times > SPINS) (void)sched_yield();
#if defined __x86_64__
    else __builtin_ia32_pause();
#elif defined __aarch64__
    else __asm__ volatile("isb");
#endif
}

static void run_member(void *argument, int thread, int n_threads)
{
    dp_pipeline *const p = argument;
    member m = {.pipeline = p,
                .thread = thread,
                .n_threads = n_threads,
                .node = dp_team_node(p->runtime, thread, n_threads),
                .scratch = p->thread_scratch + (size_t)thread * p->thread_bytes,
                .since = now_ns()};
    for (int waited = 0; !all_finished(p); waited++) {
        task_range range;
        if (!find_tasks(&m, &range)) {
            wait_a_little(waited);
            continue;
        }
        if (waited) m.since = now_ns();
        work_on(&m, m.at, range);
        waited = -1;
    }
    if (thread == 0) p->n_members = n_threads;
    for (int i = 0; i < DP_TIMES; i++) atomic_fetch_add_explicit(&p->ns[i], m.ns[i], memory_order_relaxed);
}

static int bits_of(uint64_t n)
{
    int bits = 0;
    for (; n; n >>= 1) bits++;
    return bits;
}

/* Lists the units. Long contexts come first, by powers of two: they should not begin when the others are done. */
static void list_units(dp_pipeline *p)
{
    dp_unit *u = p->units;
    for (int arena = 0; arena < p->n_arenas; arena++) {
        p->first_unit[arena] = (size_t)(u - p->units);
        for (int bits = 64; bits >= 0; bits--)
            for (size_t i = 0; i < p->n_steps; i++) {
                dp_step *const step = &p->steps[i];
                if (bits_of(step->layer->n_tokens) != bits) continue;
                for (size_t h = 0; h < step->sequence->config.n_kv_heads; h++) {
                    if (step->layer->heads[h].arena != arena) continue;
                    u->step = step;
                    u->kv_head = h;
                    open_stage(u, STAGE_PLAN, 0);
                    u++;
                }
            }
    }
    p->first_unit[p->n_arenas] = (size_t)(u - p->units);
}

void dp_pipeline_run(dp_pipeline *p)
{
    for (int i = 0; i < p->n_arenas; i++) atomic_init(&p->opened[i].next, 0);
    atomic_init(&p->finished->next, 0);
    for (size_t i = 0; i < p->n_slots; i++) atomic_init(&p->taken[i], false);
    for (int i = 0; i < DP_TIMES; i++) atomic_init(&p->ns[i], 0);
    list_units(p);
    dp_team_run(p->runtime, run_member, p);
}
