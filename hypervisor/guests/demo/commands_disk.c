/* Commands for disks. Data is a pattern of 64-bit words that follows from a seed and the word's place on the disk;
 * its checksum is FNV-1a over those words. Several transfers are under way at a time, and are finished in order. */
#include "net.h"

enum { SECTOR = 512, CHUNK = BLKIF_SEGMENTS * PAGE };
enum mode { MODE_READ, MODE_WRITE, MODE_VERIFY };

struct job {
    struct disk *disk;
    enum mode mode;
    uint64_t offset, length, seed;
    uint64_t done, checksum, mismatches, first_mismatch;
    bool failed;
};

static struct transfer transfers[BLOCK_DEPTH];

static uint64_t pattern(uint64_t seed, uint64_t word)
{
    uint64_t value = (word + 1) * 0x9E3779B97F4A7C15ul + seed;
    value = (value ^ value >> 32) * 0xD6E8FEB86659FD93ul;
    return value ^ value >> 32;
}

static uint32_t bytes_in(const struct transfer *transfer, uint32_t segment)
{
    return (transfer->last_sector[segment] + 1u) * SECTOR;
}

/* Goes over a transfer's words in order: makes them, or looks at them. */
static void each_word(struct job *job, struct transfer *transfer)
{
    uint64_t word = transfer->sector * SECTOR / 8, checksum = job->checksum;
    for (uint32_t segment = 0; segment < transfer->segments; segment++) {
        uint64_t *at = frame_address(transfer->frame[segment]);
        for (uint64_t *end = at + bytes_in(transfer, segment) / 8; at < end; at++, word++) {
            if (job->mode == MODE_WRITE) {
                *at = pattern(job->seed, word);
            } else if (job->mode == MODE_VERIFY && *at != pattern(job->seed, word)) {
                if (!job->mismatches++)
                    job->first_mismatch = word * 8;
            }
            checksum = (checksum ^ *at) * 0x100000001B3ul;
        }
    }
    job->checksum = checksum;
}

static void finish(struct job *job, struct transfer *transfer)
{
    if (transfer->state == TRANSFER_FREE)
        return;
    if (transfer_wait(transfer) != BLKIF_OKAY) {
        if (!job->failed)
            print("error: i/o error at %lu\r\n", transfer->sector * SECTOR);
        job->failed = true;
        return;
    }
    if (job->mode != MODE_WRITE)
        each_word(job, transfer);
    for (uint32_t segment = 0; segment < transfer->segments; segment++)
        job->done += bytes_in(transfer, segment);
}

static void begin(struct job *job, struct transfer *transfer, uint64_t at)
{
    uint64_t left = job->offset + job->length - at;
    transfer->disk = job->disk;
    transfer->operation = job->mode == MODE_WRITE ? BLKIF_WRITE : BLKIF_READ;
    transfer->sector = at / SECTOR;
    for (transfer->segments = 0; left && transfer->segments < BLKIF_SEGMENTS; transfer->segments++) {
        uint64_t bytes = left < PAGE ? left : PAGE;
        transfer->last_sector[transfer->segments] = (uint8_t)(bytes / SECTOR - 1);
        left -= bytes;
    }
    if (job->mode == MODE_WRITE)
        each_word(job, transfer);
    transfer_start(transfer);
}

static void with_frames(void (*each)(uint64_t *frame))
{
    for (uint32_t number = 0; number < BLOCK_DEPTH; number++)
        for (uint32_t segment = 0; segment < BLKIF_SEGMENTS; segment++)
            each(&transfers[number].frame[segment]);
}

static void take(uint64_t *frame) { *frame = frame_take(); }
static void give(uint64_t *frame) { frame_give(*frame); }

static void run(struct job *job)
{
    uint64_t end = job->offset + job->length, number = 0;
    job->checksum = 0xCBF29CE484222325ul;
    if (memory_free < BLOCK_DEPTH * BLKIF_SEGMENTS + 16) {
        print("error: not enough memory\r\n");
        job->failed = true;
        return;
    }
    with_frames(take);
    for (uint64_t at = job->offset; at < end && !job->failed && !interrupted; at += CHUNK, number++) {
        finish(job, &transfers[number % BLOCK_DEPTH]);
        if (!job->failed)
            begin(job, &transfers[number % BLOCK_DEPTH], at);
    }
    for (uint32_t count = 0; count < BLOCK_DEPTH; count++, number++)
        finish(job, &transfers[number % BLOCK_DEPTH]);
    with_frames(give);
}

static void report(struct job *job, uint64_t nanoseconds)
{
    uint64_t microseconds = nanoseconds / 1000 ?: 1;
    if (interrupted)
        print("error: interrupted\r\n");
    print("bytes: %lu\r\nchecksum: %016lx\r\n", job->done, job->checksum);
    if (job->mode == MODE_VERIFY) {
        print("mismatches: %lu\r\n", job->mismatches);
        if (job->mismatches)
            print("first-mismatch: %lu\r\n", job->first_mismatch);
        print("verify: %s\r\n", job->mismatches || job->failed || interrupted ? "failed" : "ok");
    }
    print("ms: %lu\r\nkib-per-s: %lu\r\n", microseconds / 1000, job->done * 1000000 / 1024 / microseconds);
}

static struct disk *take_disk(char **arguments)
{
    char *name = take_word(arguments);
    struct disk *disk = disk_of(name);
    if (!disk)
        print("error: there is no disk %s\r\n", name);
    return disk;
}

/* Runs a mode on DISK OFFSET LENGTH [SEED], or when `whole` on DISK [SEED]. */
static void data_command(char *arguments, enum mode mode, bool whole)
{
    struct job job = {.mode = mode, .disk = take_disk(&arguments)};
    if (!job.disk)
        return;
    uint64_t size = job.disk->sectors * SECTOR, unit = job.disk->sector_size;
    job.length = size;
    bool okay = whole || (parse_size(take_word(&arguments), &job.offset) &&
                          parse_size(take_word(&arguments), &job.length));
    char *seed = take_word(&arguments);
    if (!okay || (*seed && !parse_number(seed, &job.seed))) {
        print("error: offset, length and seed are numbers\r\n");
    } else if (job.offset % unit || job.length % unit || job.offset > size || job.length > size - job.offset) {
        print("error: the range must be whole sectors of %lu bytes below %lu\r\n", unit, size);
    } else if (mode == MODE_WRITE && job.disk->info & VDISK_READONLY) {
        print("error: %s is read-only\r\n", job.disk->name);
    } else {
        uint64_t start = now();
        run(&job);
        report(&job, now() - start);
    }
}

static void read_command(char *arguments) { data_command(arguments, MODE_READ, false); }
static void write_command(char *arguments) { data_command(arguments, MODE_WRITE, false); }
static void verify_command(char *arguments) { data_command(arguments, MODE_VERIFY, false); }
static void fill_command(char *arguments) { data_command(arguments, MODE_WRITE, true); }
static void check_command(char *arguments) { data_command(arguments, MODE_VERIFY, true); }
static void checksum_command(char *arguments) { data_command(arguments, MODE_READ, true); }

/* Does an operation without data, and tells how it went. */
static void simple(struct disk *disk, bool offered, uint8_t operation, uint64_t sector, uint64_t sectors)
{
    struct transfer transfer = {.disk = disk, .operation = operation, .sector = sector, .sectors = sectors};
    if (!offered) {
        print("error: %s does not offer it\r\n", disk->name);
        return;
    }
    transfer_start(&transfer);
    int status = transfer_wait(&transfer);
    if (status == BLKIF_OKAY)
        print("done: ok\r\n");
    else
        print("error: %s\r\n", status == BLKIF_NOT_SUPPORTED ? "not supported" : "i/o error");
}

static void flush_command(char *arguments)
{
    struct disk *disk = take_disk(&arguments);
    if (disk)
        simple(disk, disk->can_flush, BLKIF_FLUSH, 0, 0);
}

static void discard_command(char *arguments)
{
    struct disk *disk = take_disk(&arguments);
    uint64_t offset, length;
    if (!disk)
        return;
    if (!parse_size(take_word(&arguments), &offset) || !parse_size(take_word(&arguments), &length))
        print("error: offset and length are numbers\r\n");
    else
        simple(disk, disk->can_discard, BLKIF_DISCARD, offset / SECTOR, length / SECTOR);
}

static void disks_command(char *arguments)
{
    (void)arguments;
    uint32_t count = 0;
    for (uint32_t at = 0; at < DISKS; at++) {
        struct disk *disk = &disks[at];
        if (!disk->device)
            continue;
        count++;
        print("%s: number=%u state=%s bytes=%lu sector=%u mode=%s", disk->name, disk->device->number,
              disk->connected ? "connected" : "waiting", disk->sectors * SECTOR, disk->sector_size,
              disk->info & VDISK_READONLY ? "r" : "w");
        print(" cdrom=%u flush=%u discard=%u reads=%lu writes=%lu errors=%lu\r\n", disk->info & VDISK_CDROM ? 1 : 0,
              disk->can_flush, disk->can_discard, disk->reads, disk->writes, disk->failures);
    }
    print("disks: %u\r\n", count);
}

const struct command disk_commands[] = {
    {"disks", "", disks_command},
    {"read", "DISK OFFSET LENGTH", read_command},
    {"write", "DISK OFFSET LENGTH [SEED]", write_command},
    {"verify", "DISK OFFSET LENGTH [SEED]", verify_command},
    {"fill", "DISK [SEED]", fill_command},
    {"check", "DISK [SEED]", check_command},
    {"checksum", "DISK", checksum_command},
    {"flush", "DISK", flush_command},
    {"discard", "DISK OFFSET LENGTH", discard_command},
    {NULL, NULL, NULL},
};
