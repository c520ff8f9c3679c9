/*
 * Hash maps: writers. kernel/bpf/hashtab.c says what they do; here they do it in memory that other
 * processes share, and any of them may be killed between any two instructions.
 *
 * A stripe's lock guards its buckets. Its holder first writes into the stripe what it is about to do, and
 * then does it so that one store is the commit: the store that links or unlinks. Who takes the lock over
 * from a dead holder finishes or undoes the rest (stripe_repair). Elements belong to a stripe (ub_elem.stripe)
 * or are free; the bitmap only says where to look for free ones, and every wrong bit is one that a repair or
 * the bit's owner is about to correct.
 */
#include "map_hash.h"

enum ub_stripe_op { OP_NONE, OP_INSERT, OP_REPLACE, OP_DELETE };

static uint64_t *bitmap(const struct ub_map_def *def, uint8_t *base)
{
    return (uint64_t *)(ub_stripe(def, base, 0) + ub_n_stripes(def));
}

static uint32_t stripe_number(const struct ub_map_def *def, uint8_t *base, const struct ub_stripe *stripe)
{
    return (uint32_t)(stripe - ub_stripe(def, base, 0)) + 1;
}

static uint32_t stripe_spare(const struct ub_map_def *def, uint8_t *base, const struct ub_stripe *stripe)
{
    uint32_t link = ub_load(&stripe->spare);
    return ub_elem(def, base, link) ? link : def->max_entries + stripe_number(def, base, stripe);
}

/* The word that points to `link` in a bucket's chain, NULL when it is not in it. */
static uint32_t *chain_find(const struct ub_map_def *def, uint8_t *base, uint32_t bucket, uint32_t link)
{
    uint32_t *at = ub_head(def, base, bucket);

    for (uint32_t i = 0; i <= ub_walk_limit(def); i++) {
        uint32_t here = ub_load(at);
        struct ub_elem *e = ub_elem(def, base, here);
        if (here == link)
            return at;
        if (e == NULL)
            return NULL;
        at = &e->next;
    }
    return NULL;
}

/* ---- elements ---------------------------------------------------------------------------------- */

static void elem_free(const struct ub_map_def *def, uint8_t *base, uint32_t link)
{
    struct ub_map_header *h = ub_header(base);
    struct ub_elem *e = ub_elem(def, base, link);
    uint64_t *word = bitmap(def, base) + (link - 1) / 64;

    /* first the bit: whoever sees it finds the element still taken and goes on; see elem_claim */
    __atomic_fetch_and(word, ~(1ull << ((link - 1) % 64)), __ATOMIC_RELAXED);
    ub_store(&h->free_hint, (link - 1) / 64);
    /* release: our last accesses to the element come before its next owner's */
    ub_store_release(&e->stripe, 0);
    __atomic_fetch_add(&h->free_seq, 1, __ATOMIC_RELEASE);
}

/* Claims a free element of one bitmap word; its link, or 0. */
static uint32_t word_claim(const struct ub_map_def *def, uint8_t *base, struct ub_stripe *stripe, uint64_t word)
{
    uint64_t *bits = bitmap(def, base) + word;
    uint64_t free = ~ub_load(bits);

    if (word == (def->n_elems - 1) / 64 && def->n_elems % 64)
        free &= (1ull << (def->n_elems % 64)) - 1;
    for (; free; free &= free - 1) {
        uint32_t bit = (uint32_t)__builtin_ctzll(free);
        uint32_t link = (uint32_t)word * 64 + bit + 1;
        struct ub_elem *e = ub_elem(def, base, link);
        uint32_t nobody = 0;

        if (e == NULL || ub_load(&e->stripe) != 0)
            continue;
        /* Journal, then claim. Only we can make it ours, so a repair that sees our number knows it is. */
        ub_store_release(&stripe->elem, link);
        if (!__atomic_compare_exchange_n(&e->stripe, &nobody, stripe_number(def, base, stripe), 0, __ATOMIC_ACQ_REL,
                                         __ATOMIC_RELAXED))
            continue;
        __atomic_fetch_or(bits, 1ull << bit, __ATOMIC_RELAXED);
        ub_store(&stripe->hint, (uint32_t)word + 1);
        return link;
    }
    return 0;
}

/* A free element, claimed for the stripe whose lock we hold; 0 when max_entries are in use. */
static uint32_t elem_claim(const struct ub_map_def *def, uint8_t *base, struct ub_stripe *stripe)
{
    struct ub_map_header *h = ub_header(base);
    uint32_t n_words = (def->n_elems + 63) / 64, link;
    uint64_t frees = ub_load_acquire(&h->free_seq);
    uint32_t hint = ub_load(&stripe->hint);

    if (ub_load(&h->full_at) == frees + 1)
        return 0;
    if (hint == 0 || hint > n_words) /* eight places to begin with, so that CPUs meet seldom */
        hint = (uint32_t)((uint64_t)(stripe_number(def, base, stripe) & 7) * n_words / 8) + 1;
    link = word_claim(def, base, stripe, hint - 1);
    if (!link && ub_load(&h->free_hint) < n_words)
        link = word_claim(def, base, stripe, ub_min(ub_load(&h->free_hint), n_words - 1));
    for (uint32_t i = 1, word = hint - 1; !link && i < n_words; i++) {
        word = word + 1 < n_words ? word + 1 : 0;
        link = word_claim(def, base, stripe, word);
    }
    if (!link)
        ub_store(&h->full_at, frees + 1);
    return link;
}

/* ---- what the holder of a stripe does, and its repair ------------------------------------------- */

static void op_begin(struct ub_stripe *stripe, enum ub_stripe_op op, uint32_t bucket, uint32_t elem, uint32_t old)
{
    ub_store(&stripe->bucket, bucket);
    ub_store(&stripe->elem, elem);
    ub_store(&stripe->old, old);
    ub_store_release(&stripe->op, op); /* the operands are there before the operation is */
}

static void op_end(struct ub_stripe *stripe)
{
    ub_store_release(&stripe->op, OP_NONE);
}

/* Readers that missed between the two sequence changes look again: see ub_hash_find_slow. */
static void chain_store(struct ub_stripe *stripe, uint32_t *at, uint32_t link)
{
    uint32_t seq = ub_load(&stripe->seq) | 1;
    ub_store(&stripe->seq, seq);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    ub_store_release(at, link); /* the commit */
    ub_store_release(&stripe->seq, seq + 1);
}

/* Brings a stripe in order whose holder died. Nothing is lost: an operation is done or not begun. */
static void stripe_repair(const struct ub_map_def *def, uint8_t *base, struct ub_stripe *stripe)
{
    uint32_t bucket = ub_load(&stripe->bucket) & (def->n_buckets - 1);
    uint32_t elem = ub_load(&stripe->elem), old = ub_load(&stripe->old);
    struct ub_elem *e = ub_elem(def, base, elem);
    int linked = e && chain_find(def, base, bucket, elem) != NULL;

    ub_store(&stripe->seq, (ub_load(&stripe->seq) | 1) + 1);
    switch (ub_load(&stripe->op)) {
    case OP_INSERT:
    case OP_DELETE:
        if (e == NULL || ub_load(&e->stripe) != stripe_number(def, base, stripe))
            break;
        if (linked)
            __atomic_fetch_or(bitmap(def, base) + (elem - 1) / 64, 1ull << ((elem - 1) % 64), __ATOMIC_RELAXED);
        else
            elem_free(def, base, elem);
        break;
    case OP_REPLACE:
        if (linked && ub_elem(def, base, old) && !chain_find(def, base, bucket, old))
            ub_store(&stripe->spare, old);
        break;
    default:
        break;
    }
    __atomic_fetch_add(&ub_header(base)->free_seq, 1, __ATOMIC_RELEASE); /* forget "full" */
    op_end(stripe);
}

/* Takes a stripe's lock and finds the stripe in order: 0 or -EBUSY. */
int ub_stripe_lock(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, struct ub_stripe *stripe)
{
    int got = ub_lock(&stripe->lock, ub_owner(run));
    if (got == UB_LOCK_RECOVERED)
        stripe_repair(def, base, stripe);
    return got < 0 ? got : 0;
}

static void value_write(const struct ub_map_def *def, uint8_t *base, uint32_t link, const void *value, uint32_t cpu)
{
    if (def->type != UB_MAP_PERCPU_HASH) {
        ub_copy_in(ub_elem_value(def, base, link, 0), value, def->value_size);
        return;
    }
    for (uint32_t i = 0; i < def->n_cpus && cpu != UB_ALL_CPUS; i++)
        if (i != cpu)
            ub_clear(ub_elem_value(def, base, link, i), def->value_stride);
    ub_percpu_copy_in(def, base, link - 1, value, cpu);
}

static uint64_t insert(const struct ub_map_def *def, uint8_t *base, struct ub_stripe *stripe, uint32_t bucket,
                       const void *key, const void *value, uint32_t cpu)
{
    uint32_t *head = ub_head(def, base, bucket), link;
    struct ub_elem *e;

    op_begin(stripe, OP_INSERT, bucket, 0, 0);
    link = elem_claim(def, base, stripe);
    e = ub_elem(def, base, link);
    if (e == NULL) {
        op_end(stripe);
        return ub_error(UB_E2BIG);
    }
    value_write(def, base, link, value, cpu);
    ub_copy_in(ub_elem_key(e), key, def->key_size);
    ub_store(&e->next, ub_load(head));
    chain_store(stripe, head, link);
    op_end(stripe);
    return 0;
}

/* Lookups see the old or the new value, never a mixture: a new element takes the old one's place. */
static void replace(const struct ub_map_def *def, uint8_t *base, struct ub_stripe *stripe, uint32_t bucket,
                    uint32_t *at, const void *key, const void *value)
{
    uint32_t old = ub_load(at), link = stripe_spare(def, base, stripe);
    struct ub_elem *e = ub_elem(def, base, link), *o = ub_elem(def, base, old);

    op_begin(stripe, OP_REPLACE, bucket, link, old);
    ub_store(&e->stripe, stripe_number(def, base, stripe));
    ub_copy_in(ub_elem_value(def, base, link, 0), value, def->value_size);
    ub_copy_in(ub_elem_key(e), key, def->key_size);
    ub_store(&e->next, ub_load(&o->next));
    chain_store(stripe, at, link);
    ub_store(&stripe->spare, old);
    op_end(stripe);
}

/* The word that points to the element of `key`, under the lock; the chain's last word when there is none. */
UB_INLINE uint32_t *locked_find(const struct ub_map_def *def, uint8_t *base, uint32_t bucket, const void *key,
                                int *found)
{
    uint32_t *at = ub_head(def, base, bucket);

    *found = 0;
    for (uint32_t i = 0; i < ub_walk_limit(def); i++) {
        struct ub_elem *e = ub_elem(def, base, ub_load(at));
        if (e == NULL)
            break;
        if (ub_key_equal(def, ub_elem_key(e), key)) {
            *found = 1;
            break;
        }
        at = &e->next;
    }
    return at;
}

/* bpf_map_update_elem: kernel/bpf/hashtab.c htab_map_update_elem, __htab_percpu_map_update_elem */
UB_OUTLINE uint64_t ub_hash_update(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, const void *key,
                                   const void *value, uint64_t flags)
{
    uint32_t bucket = ub_bucket(def, key), *at;
    struct ub_stripe *stripe = ub_stripe(def, base, bucket);
    uint64_t ret = 0;
    int err, found;

    if (flags > UB_EXIST)
        return ub_error(UB_EINVAL);
    err = ub_stripe_lock(run, def, base, stripe);
    if (err)
        return (uint64_t)(int64_t)err;
    at = locked_find(def, base, bucket, key, &found);
    if (found && flags == UB_NOEXIST)
        ret = ub_error(UB_EEXIST);
    else if (!found && flags == UB_EXIST)
        ret = ub_error(UB_ENOENT);
    else if (!found)
        ret = insert(def, base, stripe, bucket, key, value, run->cpu);
    else if (def->type == UB_MAP_PERCPU_HASH)
        ub_percpu_copy_in(def, base, ub_load(at) - 1, value, run->cpu);
    else
        replace(def, base, stripe, bucket, at, key, value);
    ub_unlock(&stripe->lock);
    return ret;
}

/* bpf_map_delete_elem: htab_map_delete_elem */
UB_OUTLINE uint64_t ub_hash_delete(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, const void *key)
{
    uint32_t bucket = ub_bucket(def, key), *at;
    struct ub_stripe *stripe = ub_stripe(def, base, bucket);
    int err = ub_stripe_lock(run, def, base, stripe), found;

    if (err)
        return (uint64_t)(int64_t)err;
    at = locked_find(def, base, bucket, key, &found);
    if (found) {
        uint32_t link = ub_load(at);
        op_begin(stripe, OP_DELETE, bucket, link, 0);
        chain_store(stripe, at, ub_load(&ub_elem(def, base, link)->next));
        elem_free(def, base, link);
        op_end(stripe);
    }
    ub_unlock(&stripe->lock);
    return found ? 0 : ub_error(UB_ENOENT);
}

/*
 * The whole walk, and again until no writer was seen at work beside a miss. Bounded: a writer that is
 * stopped in the middle (or is this very thread, below a signal handler) makes a miss count as one.
 */
UB_OUTLINE uint32_t ub_hash_find_slow(const struct ub_map_def *def, uint8_t *base, const void *key)
{
    uint32_t bucket = ub_bucket(def, key);
    struct ub_stripe *stripe = ub_stripe(def, base, bucket);

    for (uint32_t i = 0;; i++) {
        uint32_t before = ub_load_acquire(&stripe->seq);
        int whole;
        uint32_t link = ub_walk(def, base, bucket, key, ub_walk_limit(def) + 1, &whole);

        if (link)
            return link;
        __atomic_thread_fence(__ATOMIC_ACQUIRE); /* the walk's loads come before this one of the sequence */
        if ((!(before & 1) && ub_load(&stripe->seq) == before) || !whole || i == 64)
            return 0;
        ub_pause();
    }
}
