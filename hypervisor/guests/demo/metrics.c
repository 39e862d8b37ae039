/* What the guest tells of itself in xenstore, in the keys of XenServer's agent for Linux (xe-daemon). */
#include "net.h"

enum { EVERY_SECONDS = 60 };

static struct timer timer;
static const char *const facts[][2] = {
    {"attr/PVAddons/Installed", "1"},
    {"attr/PVAddons/MajorVersion", TEXT(VERSION_MAJOR)},
    {"attr/PVAddons/MinorVersion", TEXT(VERSION_MINOR)},
    {"attr/PVAddons/MicroVersion", TEXT(VERSION_MICRO)},
    {"attr/PVAddons/BuildVersion", "1"},
    {"attr/os/class", "demo"},
    {"data/os_name", "Kronos demo guest " VERSION},
    {"data/os_uname", VERSION},
    {"data/os_distro", "kronos-demo"},
    {"data/os_majorver", TEXT(VERSION_MAJOR)},
    {"data/os_minorver", TEXT(VERSION_MINOR)},
    {"control/feature-shutdown", "1"},
    {"control/feature-poweroff", "1"},
    {"control/feature-reboot", "1"},
    {"control/feature-suspend", "1"},
    {"control/feature-balloon", "1"},
    {"control/feature-static-ip-setting", "1"},
};

/* Writes the date as the agent does: "Mon Jan _2 15:04:05 2006", in UTC. */
static void put_date(void)
{
    static const char names[] = "JanFebMarAprMayJunJulAugSepOctNovDec", days[] = "ThuFriSatSunMonTueWed";
    uint64_t seconds = wall_clock() / NANOSECONDS, day = seconds / 86400;
    /* Days since 0000-03-01, in years that begin in March, in eras of 400 years. */
    uint64_t shifted = day + 719468, of_era = shifted % 146097;
    uint64_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    uint64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    uint64_t month = (5 * of_year + 2) / 153, of_month = of_year - (153 * month + 2) / 5 + 1;
    uint64_t year = shifted / 146097 * 400 + year_of_era + (month >= 10);
    month = (month + 2) % 12;
    char text[40], month_name[4] = {names[3 * month], names[3 * month + 1], names[3 * month + 2], 0};
    char day_name[4] = {days[3 * (day % 7)], days[3 * (day % 7) + 1], days[3 * (day % 7) + 2], 0};
    format(text, sizeof text, "%s %s %2lu %02lu:%02lu:%02lu %lu", day_name, month_name, of_month,
           seconds / 3600 % 24, seconds / 60 % 60, seconds % 60, year);
    store_put(text, "data/updated");
}

static void update(void)
{
    char text[24];
    format(text, sizeof text, "%lu", memory_frames * 4);
    store_put(text, "data/meminfo_total");
    format(text, sizeof text, "%lu", memory_free * 4);
    store_put(text, "data/meminfo_free");
    put_date();
    timer.when = now() + EVERY_SECONDS * NANOSECONDS;
}

static void due(void *unused)
{
    (void)unused;
    update();
}

/* Tells a NIC's address, or that it has none any more. */
void metrics_address(struct station *station)
{
    char text[16], path[40], old[40];
    uint32_t address = station->address;
    format(path, sizeof path, "attr/vif/%u/ipv4/0", station->index);
    format(old, sizeof old, "attr/eth%u/ip", station->index);
    if (address) {
        format(text, sizeof text, "%u.%u.%u.%u", address >> 24, address >> 16 & 255, address >> 8 & 255, address & 255);
        store_put(text, "%s", path);
        store_put(text, "%s", old);
    } else {
        store_remove(path);
        store_remove(old);
    }
    put_date();
}

/* Writes everything; after a resume too, for the keys may be gone. */
void metrics_resume(void)
{
    for (uint32_t at = 0; at < COUNT_OF(facts); at++)
        store_put(facts[at][1], "%s", facts[at][0]);
    update();
}

void metrics_start(void)
{
    timer.due = due;
    timer_add(&timer);
    metrics_resume();
}
