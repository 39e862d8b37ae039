"""The objects of the store, one class each. Written by `python -m xapi.tools.stubs`; do not edit."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Literal, TypedDict

from xapi.datamodel.types import Ref
from xapi.store.rows import Row, Table

enum_bond_mode = Literal["balance-slb", "active-backup", "lacp"]
enum_certificate_type = Literal["ca", "host", "host_internal", "pinned"]
enum_cluster_operation = Literal["add", "remove", "enable", "disable", "destroy"]
enum_cluster_host_operation = Literal["enable", "disable", "destroy"]
enum_console_protocol = Literal["vt100", "rfb", "rdp"]
enum_event_operation = Literal["add", "del", "mod"]
enum_allocation_algorithm = Literal["breadth_first", "depth_first"]
enum_host_allowed_operations = Literal["provision", "evacuate", "shutdown", "reboot", "power_on", "vm_start", "vm_resume", "vm_migrate", "apply_updates", "enable"]
enum_host_display = Literal["enabled", "disable_on_reboot", "disabled", "enable_on_reboot"]
enum_host_ntp_mode = Literal["DHCP", "Custom", "Factory", "Disabled"]
enum_host_numa_affinity_policy = Literal["any", "best_effort", "default_policy"]
enum_host_sched_gran = Literal["core", "cpu", "socket"]
enum_latest_synced_updates_applied_state = Literal["yes", "no", "unknown"]
enum_cls = Literal["VM", "Host", "SR", "Pool", "VMPP", "VMSS", "PVS_proxy", "VDI", "Certificate"]
enum_network_default_locking_mode = Literal["unlocked", "disabled"]
enum_network_operations = Literal["attaching"]
enum_network_purpose = Literal["nbd", "insecure_nbd"]
enum_sriov_configuration_mode = Literal["sysfs", "modprobe", "manual", "unknown"]
enum_pci_dom0_access = Literal["enabled", "disable_on_reboot", "disabled", "enable_on_reboot"]
enum_ip_configuration_mode = Literal["None", "DHCP", "Static"]
enum_ipv6_configuration_mode = Literal["None", "DHCP", "Static", "Autoconf"]
enum_pif_igmp_status = Literal["enabled", "disabled", "unknown"]
enum_primary_address_type = Literal["IPv4", "IPv6"]
enum_certificate_purpose = Literal["licensing", "ldaps"]
enum_hello_return = Literal["ok", "unknown_host", "cannot_talk_back"]
enum_pool_allowed_operations = Literal["ha_enable", "ha_disable", "cluster_create", "designate_new_master", "configure_repositories", "sync_updates", "sync_bundle", "get_updates", "apply_updates", "tls_verification_enable", "cert_refresh", "exchange_certificates_on_join", "exchange_ca_certificates_on_join", "copy_primary_host_certs", "eject", "exchange_crls_on_join"]
enum_pool_guest_secureboot_readiness = Literal["ready", "ready_no_dbx", "not_ready"]
enum_telemetry_frequency = Literal["daily", "weekly", "monthly"]
enum_update_sync_frequency = Literal["daily", "weekly"]
enum_after_apply_guidance = Literal["restartHVM", "restartPV", "restartHost", "restartXAPI"]
enum_livepatch_status = Literal["ok_livepatch_complete", "ok_livepatch_incomplete", "ok"]
enum_update_after_apply_guidance = Literal["restartHVM", "restartPV", "restartHost", "restartXAPI"]
enum_pvs_proxy_status = Literal["stopped", "initialised", "caching", "incompatible_write_cache_mode", "incompatible_protocol_version"]
enum_origin = Literal["remote", "bundle", "remote_pool"]
enum_sdn_controller_protocol = Literal["ssl", "pssl"]
enum_image_format_type = Literal["raw", "vhd", "qcow2"]
enum_storage_operations = Literal["scan", "destroy", "forget", "plug", "unplug", "update", "vdi_create", "vdi_introduce", "vdi_destroy", "vdi_resize", "vdi_clone", "vdi_snapshot", "vdi_mirror", "vdi_enable_cbt", "vdi_disable_cbt", "vdi_data_destroy", "vdi_list_changed_blocks", "vdi_set_on_boot", "vdi_blocked", "vdi_copy", "vdi_force_unlock", "vdi_forget", "vdi_generate_config", "vdi_resize_online", "vdi_update", "vdi_revert", "pbd_create", "pbd_destroy"]
enum_sr_health = Literal["healthy", "recovering", "unreachable", "unavailable"]
enum_task_allowed_operations = Literal["cancel", "destroy"]
enum_task_status_type = Literal["pending", "success", "failure", "cancelling", "cancelled"]
enum_tunnel_protocol = Literal["gre", "vxlan"]
enum_vbd_mode = Literal["RO", "RW"]
enum_vbd_operations = Literal["attach", "eject", "insert", "plug", "unplug", "unplug_force", "pause", "unpause"]
enum_vbd_type = Literal["CD", "Disk", "Floppy"]
enum_on_boot = Literal["reset", "persist"]
enum_vdi_operations = Literal["clone", "copy", "resize", "resize_online", "snapshot", "mirror", "destroy", "forget", "update", "force_unlock", "generate_config", "enable_cbt", "disable_cbt", "data_destroy", "list_changed_blocks", "set_on_boot", "blocked", "revert_to", "revert_from"]
enum_vdi_type = Literal["system", "user", "ephemeral", "suspend", "crashdump", "ha_statefile", "metadata", "redo_log", "rrd", "pvs_cache", "cbt_metadata"]
enum_vgpu_type_implementation = Literal["passthrough", "nvidia", "nvidia_sriov", "gvt_g", "mxgpu"]
enum_vif_ipv4_configuration_mode = Literal["None", "Static", "DHCP"]
enum_vif_ipv6_configuration_mode = Literal["None", "Static", "Autoconf"]
enum_vif_locking_mode = Literal["network_default", "locked", "unlocked", "disabled"]
enum_vif_operations = Literal["attach", "plug", "unplug"]
enum_domain_type = Literal["hvm", "pv", "pv_in_pvh", "pvh", "unspecified"]
enum_on_crash_behaviour = Literal["destroy", "coredump_and_destroy", "restart", "coredump_and_restart", "preserve", "rename_restart"]
enum_on_normal_exit = Literal["destroy", "restart"]
enum_on_softreboot_behavior = Literal["soft_reboot", "destroy", "restart", "preserve"]
enum_update_guidances = Literal["reboot_host", "reboot_host_on_livepatch_failure", "reboot_host_on_kernel_livepatch_failure", "reboot_host_on_xen_livepatch_failure", "restart_toolstack", "restart_device_model", "restart_vm"]
enum_update_status = Literal["yes", "no", "unspecified"]
enum_vm_operations = Literal["snapshot", "clone", "copy", "create_template", "revert", "checkpoint", "snapshot_with_quiesce", "provision", "start", "start_on", "pause", "unpause", "clean_shutdown", "clean_reboot", "hard_shutdown", "power_state_reset", "hard_reboot", "suspend", "csvm", "resume", "resume_on", "pool_migrate", "migrate_send", "get_boot_record", "send_sysrq", "send_trigger", "query_services", "shutdown", "call_plugin", "changing_memory_live", "awaiting_memory_live", "changing_dynamic_range", "changing_static_range", "changing_memory_limits", "changing_shadow_memory", "changing_shadow_memory_live", "changing_VCPUs", "changing_VCPUs_live", "changing_NVRAM", "assert_operation_valid", "data_source_op", "update_allowed_operations", "make_into_template", "import", "export", "metadata_export", "reverting", "destroy", "create_vtpm", "sysprep"]
enum_vm_power_state = Literal["Halted", "Paused", "Running", "Suspended"]
enum_vm_secureboot_certificates_state = Literal["ok", "update_available", "update_on_boot"]
enum_vm_secureboot_readiness = Literal["not_supported", "disabled", "first_boot", "ready", "ready_no_dbx", "setup_mode", "certs_incomplete"]
enum_vm_uefi_mode = Literal["setup", "user"]
enum_vm_appliance_operation = Literal["start", "clean_shutdown", "hard_shutdown", "shutdown"]
enum_placement_policy = Literal["anti_affinity", "normal"]
enum_tristate_type = Literal["yes", "no", "unspecified"]
enum_vmpp_archive_frequency = Literal["never", "always_after_backup", "daily", "weekly"]
enum_vmpp_archive_target_type = Literal["none", "cifs", "nfs"]
enum_vmpp_backup_frequency = Literal["hourly", "daily", "weekly"]
enum_vmpp_backup_type = Literal["snapshot", "checkpoint"]
enum_vmss_frequency = Literal["hourly", "daily", "weekly"]
enum_vmss_type = Literal["snapshot", "checkpoint", "snapshot_with_quiesce"]
enum_persistence_backend = Literal["xapi"]
enum_vtpm_operations = Literal["destroy"]
enum_vusb_operations = Literal["attach", "plug", "unplug"]

class Claimable(Row):
    """An object of a class with operations, whichever; `current_operations` has them by the task that holds each."""
    allowed_operations: tuple[str, ...]
    current_operations: Mapping[str, str]

class blob(Row):
    _ref: Ref[_blob]
    uuid: str
    name_label: str
    name_description: str
    size: int
    mime_type: str
    last_updated: datetime
    public: bool

class Bond(Row):
    _ref: Ref[_Bond]
    uuid: str
    master: Ref[_PIF]
    slaves: Collection[Ref[_PIF]]
    primary_slave: Ref[_PIF]
    mode: enum_bond_mode
    links_up: int
    properties: Mapping[str, str]
    auto_update_mac: bool
    other_config: Mapping[str, str]

class Caller(Row):
    _ref: Ref[_Caller]
    uuid: str
    name_label: str
    name_description: str
    user_agent: str
    client_ip: str
    last_access: datetime
    groups: tuple[str, ...]
    rate_limit: Ref[_Rate_limit]
    auto_registered: bool

class Certificate(Row):
    _ref: Ref[_Certificate]
    uuid: str
    name: str
    type: enum_certificate_type
    host: Ref[_host]
    purpose: tuple[enum_certificate_purpose, ...]
    not_before: datetime
    not_after: datetime
    fingerprint_sha256: str
    fingerprint_sha1: str
    fingerprint: str

class Cluster(Claimable):
    _ref: Ref[_Cluster]
    uuid: str
    cluster_hosts: Collection[Ref[_Cluster_host]]
    cluster_stack: str
    cluster_stack_version: int
    is_quorate: bool
    quorum: int
    live_hosts: int
    expected_hosts: int
    pool_auto_join: bool
    token_timeout: float
    token_timeout_coefficient: float
    cluster_config: Mapping[str, str]
    other_config: Mapping[str, str]
    allowed_operations: tuple[enum_cluster_operation, ...]
    current_operations: Mapping[str, enum_cluster_operation]
    pending_forget: tuple[str, ...]
    cluster_token: str

class Cluster_host(Claimable):
    _ref: Ref[_Cluster_host]
    uuid: str
    cluster: Ref[_Cluster]
    host: Ref[_host]
    PIF: Ref[_PIF]
    enabled: bool
    joined: bool
    live: bool
    last_update_live: datetime
    other_config: Mapping[str, str]
    allowed_operations: tuple[enum_cluster_host_operation, ...]
    current_operations: Mapping[str, enum_cluster_host_operation]

class console(Row):
    _ref: Ref[_console]
    uuid: str
    protocol: enum_console_protocol
    location: str
    VM: Ref[_VM]
    other_config: Mapping[str, str]
    port: int

class crashdump(Row):
    _ref: Ref[_crashdump]
    uuid: str
    VM: Ref[_VM]
    VDI: Ref[_VDI]
    other_config: Mapping[str, str]

class DR_task(Row):
    _ref: Ref[_DR_task]
    uuid: str
    introduced_SRs: Collection[Ref[_SR]]

class Driver_variant(Row):
    _ref: Ref[_Driver_variant]
    uuid: str
    name: str
    driver: Ref[_Host_driver]
    version: str
    hardware_present: bool
    priority: float
    status: str

class Feature(Row):
    _ref: Ref[_Feature]
    uuid: str
    name_label: str
    name_description: str
    host: Ref[_host]
    enabled: bool
    experimental: bool
    version: str

class GPU_group(Row):
    _ref: Ref[_GPU_group]
    uuid: str
    name_label: str
    name_description: str
    PGPUs: Collection[Ref[_PGPU]]
    VGPUs: Collection[Ref[_VGPU]]
    GPU_types: tuple[str, ...]
    allocation_algorithm: enum_allocation_algorithm
    enabled_VGPU_types: tuple[Ref[_VGPU_type], ...]
    supported_VGPU_types: tuple[Ref[_VGPU_type], ...]
    other_config: Mapping[str, str]

class host(Claimable):
    _ref: Ref[_host]
    uuid: str
    name_label: str
    name_description: str
    hostname: str
    address: str
    enabled: bool
    metrics: Ref[_host_metrics]
    allowed_operations: tuple[enum_host_allowed_operations, ...]
    current_operations: Mapping[str, enum_host_allowed_operations]
    resident_VMs: Collection[Ref[_VM]]
    control_domain: Ref[_VM]
    tags: tuple[str, ...]
    ha_statefiles: tuple[str, ...]
    ha_network_peers: tuple[str, ...]
    other_config: Mapping[str, str]
    cpu_info: Mapping[str, str]
    memory_overhead: int
    PIFs: Collection[Ref[_PIF]]
    PBDs: Collection[Ref[_PBD]]
    suspend_image_sr: Ref[_SR]
    crash_dump_sr: Ref[_SR]
    local_cache_sr: Ref[_SR]
    iscsi_iqn: str
    multipathing: bool
    PCIs: Collection[Ref[_PCI]]
    PGPUs: Collection[Ref[_PGPU]]
    PUSBs: Collection[Ref[_PUSB]]
    chipset_info: Mapping[str, str]
    bios_strings: Mapping[str, str]
    secure_boot: bool
    power_on_mode: str
    power_on_config: Mapping[str, str]
    display: enum_host_display
    capabilities: tuple[str, ...]
    virtual_hardware_platform_versions: tuple[int, ...]
    numa_affinity_policy: enum_host_numa_affinity_policy
    guest_VCPUs_params: Mapping[str, str]
    sched_policy: str
    max_cstate: str
    supported_bootloaders: tuple[str, ...]
    cpu_configuration: Mapping[str, str]
    boot_free_mem: int
    host_CPUs: Collection[Ref[_host_cpu]]
    software_version: Mapping[str, str]
    edition: str
    editions: tuple[str, ...]
    license_params: Mapping[str, str]
    license_server: Mapping[str, str]
    features: Collection[Ref[_Feature]]
    updates: tuple[Ref[_pool_update], ...]
    updates_requiring_reboot: tuple[Ref[_pool_update], ...]
    latest_synced_updates_applied: enum_latest_synced_updates_applied_state
    last_software_update: datetime
    last_update_hash: str
    pending_guidances: tuple[enum_update_guidances, ...]
    pending_guidances_recommended: tuple[enum_update_guidances, ...]
    pending_guidances_full: tuple[enum_update_guidances, ...]
    API_version_major: int
    API_version_minor: int
    API_version_vendor: str
    API_version_vendor_implementation: Mapping[str, str]
    certificates: Collection[Ref[_Certificate]]
    tls_verification_enabled: bool
    https_only: bool
    external_auth_type: str
    external_auth_service_name: str
    external_auth_configuration: Mapping[str, str]
    ssh_enabled: bool
    ssh_enabled_timeout: int
    ssh_expiry: datetime
    ssh_auto_mode: bool
    console_idle_timeout: int
    ntp_mode: enum_host_ntp_mode
    ntp_custom_servers: tuple[str, ...]
    timezone: str
    logging: Mapping[str, str]
    crashdumps: Collection[Ref[_host_crashdump]]
    blobs: Mapping[str, Ref[_blob]]
    patches: Collection[Ref[_host_patch]]
    ssl_legacy: bool
    uefi_certificates: str
    recommended_guidances: tuple[enum_update_guidances, ...]

class host_cpu(Row):
    _ref: Ref[_host_cpu]
    uuid: str
    host: Ref[_host]
    number: int
    modelname: str
    vendor: str
    speed: int
    family: int
    model: int
    stepping: str
    flags: str
    features: str
    utilisation: float
    other_config: Mapping[str, str]

class host_crashdump(Row):
    _ref: Ref[_host_crashdump]
    uuid: str
    host: Ref[_host]
    timestamp: datetime
    size: int
    other_config: Mapping[str, str]
    filename: str

class Host_driver(Row):
    _ref: Ref[_Host_driver]
    uuid: str
    name: str
    friendly_name: str
    description: str
    host: Ref[_host]
    type: str
    variants: Collection[Ref[_Driver_variant]]
    active_variant: Ref[_Driver_variant]
    selected_variant: Ref[_Driver_variant]
    info: str

class host_metrics(Row):
    _ref: Ref[_host_metrics]
    uuid: str
    live: bool
    memory_total: int
    last_updated: datetime
    other_config: Mapping[str, str]
    memory_free: int

class host_patch(Row):
    _ref: Ref[_host_patch]
    uuid: str
    name_label: str
    name_description: str
    version: str
    host: Ref[_host]
    pool_patch: Ref[_pool_patch]
    applied: bool
    timestamp_applied: datetime
    size: int
    other_config: Mapping[str, str]
    filename: str

class LVHD(Row):
    _ref: Ref[_LVHD]
    uuid: str

class message(Row):
    _ref: Ref[_message]
    uuid: str
    name: str
    priority: int
    cls: enum_cls
    obj_uuid: str
    timestamp: datetime
    body: str

class network(Claimable):
    _ref: Ref[_network]
    uuid: str
    name_label: str
    name_description: str
    tags: tuple[str, ...]
    VIFs: Collection[Ref[_VIF]]
    PIFs: Collection[Ref[_PIF]]
    MTU: int
    bridge: str
    managed: bool
    assigned_ips: Mapping[Ref[_VIF], str]
    default_locking_mode: enum_network_default_locking_mode
    purpose: tuple[enum_network_purpose, ...]
    other_config: Mapping[str, str]
    blobs: Mapping[str, Ref[_blob]]
    allowed_operations: tuple[enum_network_operations, ...]
    current_operations: Mapping[str, enum_network_operations]

class network_sriov(Row):
    _ref: Ref[_network_sriov]
    uuid: str
    physical_PIF: Ref[_PIF]
    logical_PIF: Ref[_PIF]
    requires_reboot: bool
    configuration_mode: enum_sriov_configuration_mode

class Observer(Row):
    _ref: Ref[_Observer]
    uuid: str
    name_label: str
    name_description: str
    enabled: bool
    hosts: tuple[Ref[_host], ...]
    components: tuple[str, ...]
    endpoints: tuple[str, ...]
    attributes: Mapping[str, str]

class PBD(Row):
    _ref: Ref[_PBD]
    uuid: str
    host: Ref[_host]
    SR: Ref[_SR]
    device_config: Mapping[str, str]
    currently_attached: bool
    other_config: Mapping[str, str]

class PCI(Row):
    _ref: Ref[_PCI]
    uuid: str
    host: Ref[_host]
    pci_id: str
    driver_name: str
    class_name: str
    class_id: str
    vendor_name: str
    vendor_id: str
    device_name: str
    device_id: str
    subsystem_vendor_name: str
    subsystem_vendor_id: str
    subsystem_device_name: str
    subsystem_device_id: str
    dependencies: tuple[Ref[_PCI], ...]
    other_config: Mapping[str, str]
    attached_VMs: tuple[Ref[_VM], ...]
    scheduled_to_be_attached_to: Ref[_VM]
    functions: int
    virtual_functions: Collection[Ref[_PCI]]
    physical_function: Ref[_PCI]

class PGPU(Row):
    _ref: Ref[_PGPU]
    uuid: str
    host: Ref[_host]
    PCI: Ref[_PCI]
    GPU_group: Ref[_GPU_group]
    other_config: Mapping[str, str]
    enabled_VGPU_types: tuple[Ref[_VGPU_type], ...]
    supported_VGPU_types: tuple[Ref[_VGPU_type], ...]
    supported_VGPU_max_capacities: Mapping[Ref[_VGPU_type], int]
    resident_VGPUs: Collection[Ref[_VGPU]]
    is_system_display_device: bool
    compatibility_metadata: Mapping[str, str]
    size: int
    dom0_access: enum_pci_dom0_access

class PIF(Row):
    _ref: Ref[_PIF]
    uuid: str
    device: str
    host: Ref[_host]
    network: Ref[_network]
    MAC: str
    currently_attached: bool
    management: bool
    physical: bool
    managed: bool
    disallow_unplug: bool
    metrics: Ref[_PIF_metrics]
    ip_configuration_mode: enum_ip_configuration_mode
    IP: str
    netmask: str
    gateway: str
    DNS: str
    ipv6_configuration_mode: enum_ipv6_configuration_mode
    IPv6: tuple[str, ...]
    ipv6_gateway: str
    primary_address_type: enum_primary_address_type
    VLAN: int
    VLAN_master_of: Ref[_VLAN]
    VLAN_slave_of: Collection[Ref[_VLAN]]
    bond_master_of: Collection[Ref[_Bond]]
    bond_slave_of: Ref[_Bond]
    tunnel_access_PIF_of: Collection[Ref[_tunnel]]
    tunnel_transport_PIF_of: Collection[Ref[_tunnel]]
    sriov_physical_PIF_of: Collection[Ref[_network_sriov]]
    sriov_logical_PIF_of: Collection[Ref[_network_sriov]]
    MTU: int
    capabilities: tuple[str, ...]
    PCI: Ref[_PCI]
    igmp_snooping_status: enum_pif_igmp_status
    properties: Mapping[str, str]
    other_config: Mapping[str, str]
    device_name: str

class PIF_metrics(Row):
    _ref: Ref[_PIF_metrics]
    uuid: str
    last_updated: datetime
    other_config: Mapping[str, str]
    carrier: bool
    speed: int
    duplex: bool
    vendor_name: str
    device_name: str
    vendor_id: str
    device_id: str
    pci_bus_path: str
    io_read_kbs: float
    io_write_kbs: float

class pool(Claimable):
    _ref: Ref[_pool]
    uuid: str
    name_label: str
    name_description: str
    master: Ref[_host]
    tags: tuple[str, ...]
    default_SR: Ref[_SR]
    suspend_image_SR: Ref[_SR]
    crash_dump_SR: Ref[_SR]
    allowed_operations: tuple[enum_pool_allowed_operations, ...]
    current_operations: Mapping[str, enum_pool_allowed_operations]
    ha_enabled: bool
    ha_configuration: Mapping[str, str]
    ha_statefiles: tuple[str, ...]
    ha_host_failures_to_tolerate: int
    ha_plan_exists_for: int
    ha_overcommitted: bool
    ha_allow_overcommit: bool
    ha_reboot_vm_on_internal_shutdown: bool
    ha_cluster_stack: str
    cpu_info: Mapping[str, str]
    coordinator_bias: bool
    migration_compression: bool
    guest_agent_config: Mapping[str, str]
    limit_console_sessions: bool
    vm_console_idle_timeout: int
    uefi_certificates: str
    custom_uefi_certificates: str
    auto_update_vm_secureboot_certificates: bool
    igmp_snooping_enabled: bool
    repositories: tuple[Ref[_Repository], ...]
    last_update_sync: datetime
    update_sync_enabled: bool
    update_sync_frequency: enum_update_sync_frequency
    update_sync_day: int
    repository_proxy_url: str
    repository_proxy_username: str
    repository_proxy_password: Ref[_secret]
    live_patching_disabled: bool
    template_set: int
    tls_verification_enabled: bool
    client_certificate_auth_enabled: bool
    client_certificate_auth_name: str
    is_psr_pending: bool
    local_auth_max_threads: int
    ext_auth_max_threads: int
    ext_auth_cache_enabled: bool
    ext_auth_cache_size: int
    ext_auth_cache_expiry: int
    restrictions: Mapping[str, str]
    license_server: Mapping[str, str]
    wlb_enabled: bool
    wlb_url: str
    wlb_username: str
    wlb_password: Ref[_secret]
    redo_log_enabled: bool
    redo_log_vdi: Ref[_VDI]
    metadata_VDIs: Collection[Ref[_VDI]]
    other_config: Mapping[str, str]
    gui_config: Mapping[str, str]
    health_check_config: Mapping[str, str]
    recommendations: Mapping[str, str]
    telemetry_uuid: Ref[_secret]
    telemetry_frequency: enum_telemetry_frequency
    telemetry_next_collection: datetime
    blobs: Mapping[str, Ref[_blob]]
    wlb_verify_cert: bool
    vswitch_controller: str
    policy_no_vendor_device: bool

class pool_patch(Row):
    _ref: Ref[_pool_patch]
    uuid: str
    name_label: str
    name_description: str
    version: str
    size: int
    pool_applied: bool
    host_patches: Collection[Ref[_host_patch]]
    after_apply_guidance: tuple[enum_after_apply_guidance, ...]
    pool_update: Ref[_pool_update]
    other_config: Mapping[str, str]
    filename: str

class pool_update(Row):
    _ref: Ref[_pool_update]
    uuid: str
    name_label: str
    name_description: str
    version: str
    hosts: Collection[Ref[_host]]
    after_apply_guidance: tuple[enum_update_after_apply_guidance, ...]
    enforce_homogeneity: bool
    installation_size: int
    vdi: Ref[_VDI]
    key: str
    other_config: Mapping[str, str]

class PUSB(Row):
    _ref: Ref[_PUSB]
    uuid: str
    description: str
    host: Ref[_host]
    USB_group: Ref[_USB_group]
    passthrough_enabled: bool
    other_config: Mapping[str, str]
    vendor_desc: str
    vendor_id: str
    product_desc: str
    product_id: str
    serial: str
    version: str
    speed: float
    path: str

class PVS_cache_storage(Row):
    _ref: Ref[_PVS_cache_storage]
    uuid: str
    host: Ref[_host]
    site: Ref[_PVS_site]
    SR: Ref[_SR]
    size: int
    VDI: Ref[_VDI]

class PVS_proxy(Row):
    _ref: Ref[_PVS_proxy]
    uuid: str
    VIF: Ref[_VIF]
    site: Ref[_PVS_site]
    currently_attached: bool
    status: enum_pvs_proxy_status

class PVS_server(Row):
    _ref: Ref[_PVS_server]
    uuid: str
    site: Ref[_PVS_site]
    addresses: tuple[str, ...]
    first_port: int
    last_port: int

class PVS_site(Row):
    _ref: Ref[_PVS_site]
    uuid: str
    name_label: str
    name_description: str
    PVS_uuid: str
    servers: Collection[Ref[_PVS_server]]
    proxies: Collection[Ref[_PVS_proxy]]
    cache_storage: Collection[Ref[_PVS_cache_storage]]

class Rate_limit(Row):
    _ref: Ref[_Rate_limit]
    uuid: str
    name_label: str
    name_description: str
    burst_size: float
    fill_rate: float
    callers: Collection[Ref[_Caller]]

class Repository(Row):
    _ref: Ref[_Repository]
    uuid: str
    name_label: str
    name_description: str
    origin: enum_origin
    binary_url: str
    source_url: str
    update: bool
    gpgkey_path: str
    certificate: str
    hash: str
    up_to_date: bool

class role(Row):
    _ref: Ref[_role]
    uuid: str
    name_label: str
    name_description: str
    subroles: tuple[Ref[_role], ...]
    is_internal: bool

class SDN_controller(Row):
    _ref: Ref[_SDN_controller]
    uuid: str
    protocol: enum_sdn_controller_protocol
    address: str
    port: int

class secret(Row):
    _ref: Ref[_secret]
    uuid: str
    value: str
    other_config: Mapping[str, str]

class session(Row):
    _ref: Ref[_session]
    uuid: str
    this_host: Ref[_host]
    is_local_superuser: bool
    auth_user_name: str
    auth_user_sid: str
    subject: Ref[_subject]
    rbac_permissions: tuple[str, ...]
    last_active: datetime
    validation_time: datetime
    tasks: Collection[Ref[_task]]
    originator: str
    client_certificate: bool
    parent: Ref[_session]
    pool: bool
    other_config: Mapping[str, str]
    this_user: Ref[_user]

class SM(Row):
    _ref: Ref[_SM]
    uuid: str
    name_label: str
    name_description: str
    type: str
    features: Mapping[str, int]
    configuration: Mapping[str, str]
    supported_image_formats: tuple[enum_image_format_type, ...]
    required_cluster_stack: tuple[str, ...]
    host_pending_features: Mapping[Ref[_host], tuple[str, ...]]
    vendor: str
    copyright: str
    version: str
    required_api_version: str
    driver_filename: str
    other_config: Mapping[str, str]
    capabilities: tuple[str, ...]

class SR(Claimable):
    _ref: Ref[_SR]
    uuid: str
    name_label: str
    name_description: str
    type: str
    content_type: str
    shared: bool
    tags: tuple[str, ...]
    VDIs: Collection[Ref[_VDI]]
    PBDs: Collection[Ref[_PBD]]
    physical_size: int
    physical_utilisation: int
    virtual_allocation: int
    allowed_operations: tuple[enum_storage_operations, ...]
    current_operations: Mapping[str, enum_storage_operations]
    is_tools_sr: bool
    local_cache_enabled: bool
    clustered: bool
    introduced_by: Ref[_DR_task]
    sm_config: Mapping[str, str]
    other_config: Mapping[str, str]
    blobs: Mapping[str, Ref[_blob]]
    unfinished: tuple[str, ...]
    default_vdi_visibility: bool

class subject(Row):
    _ref: Ref[_subject]
    uuid: str
    subject_identifier: str
    roles: tuple[Ref[_role], ...]
    other_config: Mapping[str, str]

class task(Claimable):
    _ref: Ref[_task]
    uuid: str
    name_label: str
    name_description: str
    status: enum_task_status_type
    progress: float
    result: str
    error_info: tuple[str, ...]
    created: datetime
    finished: datetime
    allowed_operations: tuple[enum_task_allowed_operations, ...]
    current_operations: Mapping[str, enum_task_allowed_operations]
    other_config: Mapping[str, str]
    resident_on: Ref[_host]
    subtask_of: Ref[_task]
    subtasks: Collection[Ref[_task]]
    type: str
    backtrace: str
    session: Ref[_session]
    forwarded: bool
    forwarded_to: Ref[_host]
    externalpid: int
    stunnelpid: int

class tunnel(Row):
    _ref: Ref[_tunnel]
    uuid: str
    access_PIF: Ref[_PIF]
    transport_PIF: Ref[_PIF]
    protocol: enum_tunnel_protocol
    status: Mapping[str, str]
    other_config: Mapping[str, str]

class USB_group(Row):
    _ref: Ref[_USB_group]
    uuid: str
    name_label: str
    name_description: str
    PUSBs: Collection[Ref[_PUSB]]
    VUSBs: Collection[Ref[_VUSB]]
    other_config: Mapping[str, str]

class user(Row):
    _ref: Ref[_user]
    uuid: str
    short_name: str
    fullname: str
    other_config: Mapping[str, str]

class VBD(Claimable):
    _ref: Ref[_VBD]
    uuid: str
    VM: Ref[_VM]
    VDI: Ref[_VDI]
    empty: bool
    type: enum_vbd_type
    mode: enum_vbd_mode
    bootable: bool
    userdevice: str
    device: str
    currently_attached: bool
    unpluggable: bool
    allowed_operations: tuple[enum_vbd_operations, ...]
    current_operations: Mapping[str, enum_vbd_operations]
    other_config: Mapping[str, str]
    qos_algorithm_type: str
    qos_algorithm_params: Mapping[str, str]
    qos_supported_algorithms: tuple[str, ...]
    storage_lock: bool
    runtime_properties: Mapping[str, str]
    status_code: int
    status_detail: str
    reserved: bool
    metrics: Ref[_VBD_metrics]

class VBD_metrics(Row):
    _ref: Ref[_VBD_metrics]
    uuid: str
    io_read_kbs: float
    io_write_kbs: float
    last_updated: datetime
    other_config: Mapping[str, str]

class VDI(Claimable):
    _ref: Ref[_VDI]
    uuid: str
    name_label: str
    name_description: str
    type: enum_vdi_type
    tags: tuple[str, ...]
    SR: Ref[_SR]
    virtual_size: int
    physical_utilisation: int
    location: str
    missing: bool
    managed: bool
    VBDs: Collection[Ref[_VBD]]
    read_only: bool
    sharable: bool
    on_boot: enum_on_boot
    allow_caching: bool
    is_tools_iso: bool
    is_a_snapshot: bool
    snapshot_of: Ref[_VDI]
    snapshots: Collection[Ref[_VDI]]
    snapshot_time: datetime
    cbt_enabled: bool
    allowed_operations: tuple[enum_vdi_operations, ...]
    current_operations: Mapping[str, enum_vdi_operations]
    other_config: Mapping[str, str]
    xenstore_data: Mapping[str, str]
    sm_config: Mapping[str, str]
    metadata_of_pool: Ref[_pool]
    metadata_latest: bool
    crash_dumps: Collection[Ref[_crashdump]]
    storage_lock: bool
    parent: Ref[_VDI]

class VGPU(Row):
    _ref: Ref[_VGPU]
    uuid: str
    VM: Ref[_VM]
    device: str
    type: Ref[_VGPU_type]
    GPU_group: Ref[_GPU_group]
    currently_attached: bool
    resident_on: Ref[_PGPU]
    scheduled_to_be_resident_on: Ref[_PGPU]
    PCI: Ref[_PCI]
    extra_args: str
    other_config: Mapping[str, str]
    compatibility_metadata: Mapping[str, str]

class VGPU_type(Row):
    _ref: Ref[_VGPU_type]
    uuid: str
    vendor_name: str
    model_name: str
    implementation: enum_vgpu_type_implementation
    experimental: bool
    identifier: str
    framebuffer_size: int
    max_heads: int
    max_resolution_x: int
    max_resolution_y: int
    compatible_types_in_vm: tuple[Ref[_VGPU_type], ...]
    VGPUs: Collection[Ref[_VGPU]]
    enabled_on_PGPUs: Collection[Ref[_PGPU]]
    supported_on_PGPUs: Collection[Ref[_PGPU]]
    enabled_on_GPU_groups: Collection[Ref[_GPU_group]]
    supported_on_GPU_groups: Collection[Ref[_GPU_group]]
    size: int
    internal_config: Mapping[str, str]
    compatible_types_on_pgpu: tuple[Ref[_VGPU_type], ...]

class VIF(Claimable):
    _ref: Ref[_VIF]
    uuid: str
    VM: Ref[_VM]
    network: Ref[_network]
    device: str
    currently_attached: bool
    MAC: str
    MAC_autogenerated: bool
    MTU: int
    locking_mode: enum_vif_locking_mode
    ipv4_allowed: tuple[str, ...]
    ipv6_allowed: tuple[str, ...]
    trunks: tuple[int, ...]
    ipv4_configuration_mode: enum_vif_ipv4_configuration_mode
    ipv4_addresses: tuple[str, ...]
    ipv4_gateway: str
    ipv6_configuration_mode: enum_vif_ipv6_configuration_mode
    ipv6_addresses: tuple[str, ...]
    ipv6_gateway: str
    qos_algorithm_type: str
    qos_algorithm_params: Mapping[str, str]
    qos_supported_algorithms: tuple[str, ...]
    allowed_operations: tuple[enum_vif_operations, ...]
    current_operations: Mapping[str, enum_vif_operations]
    other_config: Mapping[str, str]
    runtime_properties: Mapping[str, str]
    status_code: int
    status_detail: str
    reserved: bool
    reserved_pci: Ref[_PCI]
    metrics: Ref[_VIF_metrics]

class VIF_metrics(Row):
    _ref: Ref[_VIF_metrics]
    uuid: str
    other_config: Mapping[str, str]
    last_updated: datetime
    io_read_kbs: float
    io_write_kbs: float

class VLAN(Row):
    _ref: Ref[_VLAN]
    uuid: str
    tag: int
    tagged_PIF: Ref[_PIF]
    untagged_PIF: Ref[_PIF]
    other_config: Mapping[str, str]

class VM(Claimable):
    _ref: Ref[_VM]
    uuid: str
    name_label: str
    name_description: str
    tags: tuple[str, ...]
    power_state: enum_vm_power_state
    allowed_operations: tuple[enum_vm_operations, ...]
    current_operations: Mapping[str, enum_vm_operations]
    resident_on: Ref[_host]
    blocked_operations: Mapping[enum_vm_operations, str]
    domid: int
    requires_reboot: bool
    is_a_template: bool
    is_default_template: bool
    is_a_snapshot: bool
    is_control_domain: bool
    memory_static_max: int
    memory_dynamic_max: int
    memory_dynamic_min: int
    memory_static_min: int
    memory_overhead: int
    HVM_shadow_multiplier: float
    VCPUs_max: int
    VCPUs_at_startup: int
    VCPUs_params: Mapping[str, str]
    domain_type: enum_domain_type
    HVM_boot_params: Mapping[str, str]
    platform: Mapping[str, str]
    bios_strings: Mapping[str, str]
    NVRAM: Mapping[str, str]
    secureboot_certificates_state: enum_vm_secureboot_certificates_state
    PV_bootloader: str
    PV_kernel: str
    PV_ramdisk: str
    PV_args: str
    PV_bootloader_args: str
    PV_legacy_args: str
    VBDs: Collection[Ref[_VBD]]
    VIFs: Collection[Ref[_VIF]]
    VGPUs: Collection[Ref[_VGPU]]
    VUSBs: Collection[Ref[_VUSB]]
    VTPMs: Collection[Ref[_VTPM]]
    attached_PCIs: Collection[Ref[_PCI]]
    consoles: Collection[Ref[_console]]
    has_vendor_device: bool
    hardware_platform_version: int
    snapshots: Collection[Ref[_VM]]
    snapshot_of: Ref[_VM]
    snapshot_time: datetime
    snapshot_info: Mapping[str, str]
    snapshot_metadata: str
    parent: Ref[_VM]
    children: Collection[Ref[_VM]]
    snapshot_schedule: Ref[_VMSS]
    is_vmss_snapshot: bool
    suspend_VDI: Ref[_VDI]
    suspend_SR: Ref[_SR]
    actions_after_shutdown: enum_on_normal_exit
    actions_after_reboot: enum_on_normal_exit
    actions_after_crash: enum_on_crash_behaviour
    actions_after_softreboot: enum_on_softreboot_behavior
    affinity: Ref[_host]
    scheduled_to_be_resident_on: Ref[_host]
    groups: tuple[Ref[_VM_group], ...]
    ha_restart_priority: str
    appliance: Ref[_VM_appliance]
    order: int
    start_delay: int
    shutdown_delay: int
    pending_guidances: tuple[enum_update_guidances, ...]
    pending_guidances_recommended: tuple[enum_update_guidances, ...]
    pending_guidances_full: tuple[enum_update_guidances, ...]
    metrics: Ref[_VM_metrics]
    guest_metrics: Ref[_VM_guest_metrics]
    other_config: Mapping[str, str]
    xenstore_data: Mapping[str, str]
    recommendations: str
    user_version: int
    version: int
    reference_label: str
    generation_id: str
    blobs: Mapping[str, Ref[_blob]]
    domarch: str
    last_booted_record: str
    last_boot_CPU_flags: Mapping[str, str]
    crash_dumps: Collection[Ref[_crashdump]]
    transportable_snapshot_id: str
    memory_target: int
    HVM_boot_policy: str
    PCI_bus: str
    ha_always_run: bool
    protection_policy: Ref[_VMPP]
    is_snapshot_from_vmpp: bool
    recommended_guidances: tuple[enum_update_guidances, ...]

class VM_appliance(Claimable):
    _ref: Ref[_VM_appliance]
    uuid: str
    name_label: str
    name_description: str
    VMs: Collection[Ref[_VM]]
    allowed_operations: tuple[enum_vm_appliance_operation, ...]
    current_operations: Mapping[str, enum_vm_appliance_operation]

class VM_group(Row):
    _ref: Ref[_VM_group]
    uuid: str
    name_label: str
    name_description: str
    placement: enum_placement_policy
    VMs: Collection[Ref[_VM]]

class VM_guest_metrics(Row):
    _ref: Ref[_VM_guest_metrics]
    uuid: str
    os_version: Mapping[str, str]
    networks: Mapping[str, str]
    netbios_name: Mapping[str, str]
    live: bool
    last_updated: datetime
    PV_drivers_detected: bool
    PV_drivers_version: Mapping[str, str]
    can_use_hotplug_vbd: enum_tristate_type
    can_use_hotplug_vif: enum_tristate_type
    other: Mapping[str, str]
    services: Mapping[str, str]
    other_config: Mapping[str, str]
    PV_drivers_up_to_date: bool
    memory: Mapping[str, str]
    disks: Mapping[str, str]

class VM_metrics(Row):
    _ref: Ref[_VM_metrics]
    uuid: str
    start_time: datetime
    install_time: datetime
    current_domain_type: enum_domain_type
    last_updated: datetime
    memory_actual: int
    VCPUs_number: int
    hvm: bool
    nested_virt: bool
    nomigrate: bool
    numa_optimised: bool
    numa_nodes: int
    numa_node_memory: Mapping[int, int]
    VCPUs_CPU: Mapping[int, int]
    VCPUs_params: Mapping[str, str]
    VCPUs_flags: Mapping[int, tuple[str, ...]]
    state: tuple[str, ...]
    other_config: Mapping[str, str]
    VCPUs_utilisation: Mapping[int, float]

class VMPP(Row):
    _ref: Ref[_VMPP]
    uuid: str
    name_label: str
    name_description: str
    VMs: Collection[Ref[_VM]]
    is_policy_enabled: bool
    backup_type: enum_vmpp_backup_type
    backup_frequency: enum_vmpp_backup_frequency
    backup_schedule: Mapping[str, str]
    backup_retention_value: int
    backup_last_run_time: datetime
    is_backup_running: bool
    archive_target_type: enum_vmpp_archive_target_type
    archive_target_config: Mapping[str, str]
    archive_frequency: enum_vmpp_archive_frequency
    archive_schedule: Mapping[str, str]
    archive_last_run_time: datetime
    is_archive_running: bool
    is_alarm_enabled: bool
    alarm_config: Mapping[str, str]
    recent_alerts: tuple[str, ...]

class VMSS(Row):
    _ref: Ref[_VMSS]
    uuid: str
    name_label: str
    name_description: str
    enabled: bool
    type: enum_vmss_type
    frequency: enum_vmss_frequency
    schedule: Mapping[str, str]
    retained_snapshots: int
    last_run_time: datetime
    VMs: Collection[Ref[_VM]]

class VTPM(Claimable):
    _ref: Ref[_VTPM]
    uuid: str
    VM: Ref[_VM]
    is_unique: bool
    is_protected: bool
    persistence_backend: enum_persistence_backend
    backend: Ref[_VM]
    contents: Ref[_secret]
    allowed_operations: tuple[enum_vtpm_operations, ...]
    current_operations: Mapping[str, enum_vtpm_operations]

class VUSB(Claimable):
    _ref: Ref[_VUSB]
    uuid: str
    VM: Ref[_VM]
    USB_group: Ref[_USB_group]
    currently_attached: bool
    other_config: Mapping[str, str]
    allowed_operations: tuple[enum_vusb_operations, ...]
    current_operations: Mapping[str, enum_vusb_operations]

class Caller_record(TypedDict, total=False):
    uuid: str
    name_label: str
    name_description: str
    user_agent: str
    client_ip: str
    last_access: datetime
    groups: tuple[str, ...]
    rate_limit: Ref[_Rate_limit]
    auto_registered: bool

class console_record(TypedDict, total=False):
    uuid: str
    protocol: enum_console_protocol
    location: str
    VM: Ref[_VM]
    other_config: Mapping[str, str]

class network_record(TypedDict, total=False):
    uuid: str
    name_label: str
    name_description: str
    tags: tuple[str, ...]
    VIFs: Collection[Ref[_VIF]]
    PIFs: Collection[Ref[_PIF]]
    MTU: int
    bridge: str
    managed: bool
    assigned_ips: Mapping[Ref[_VIF], str]
    default_locking_mode: enum_network_default_locking_mode
    purpose: tuple[enum_network_purpose, ...]
    other_config: Mapping[str, str]
    blobs: Mapping[str, Ref[_blob]]
    allowed_operations: tuple[enum_network_operations, ...]
    current_operations: Mapping[str, enum_network_operations]

class Observer_record(TypedDict, total=False):
    uuid: str
    name_label: str
    name_description: str
    enabled: bool
    hosts: tuple[Ref[_host], ...]
    components: tuple[str, ...]
    endpoints: tuple[str, ...]
    attributes: Mapping[str, str]

class PBD_record(TypedDict, total=False):
    uuid: str
    host: Ref[_host]
    SR: Ref[_SR]
    device_config: Mapping[str, str]
    currently_attached: bool
    other_config: Mapping[str, str]

class PVS_cache_storage_record(TypedDict, total=False):
    uuid: str
    host: Ref[_host]
    site: Ref[_PVS_site]
    SR: Ref[_SR]
    size: int
    VDI: Ref[_VDI]

class Rate_limit_record(TypedDict, total=False):
    uuid: str
    name_label: str
    name_description: str
    burst_size: float
    fill_rate: float
    callers: Collection[Ref[_Caller]]

class secret_record(TypedDict, total=False):
    uuid: str
    value: str
    other_config: Mapping[str, str]

class subject_record(TypedDict, total=False):
    uuid: str
    subject_identifier: str
    roles: tuple[Ref[_role], ...]
    other_config: Mapping[str, str]

class user_record(TypedDict, total=False):
    uuid: str
    short_name: str
    fullname: str
    other_config: Mapping[str, str]

class VBD_record(TypedDict, total=False):
    uuid: str
    VM: Ref[_VM]
    VDI: Ref[_VDI]
    empty: bool
    type: enum_vbd_type
    mode: enum_vbd_mode
    bootable: bool
    userdevice: str
    device: str
    currently_attached: bool
    unpluggable: bool
    allowed_operations: tuple[enum_vbd_operations, ...]
    current_operations: Mapping[str, enum_vbd_operations]
    other_config: Mapping[str, str]
    qos_algorithm_type: str
    qos_algorithm_params: Mapping[str, str]
    qos_supported_algorithms: tuple[str, ...]
    storage_lock: bool
    runtime_properties: Mapping[str, str]
    status_code: int
    status_detail: str
    metrics: Ref[_VBD_metrics]

class VDI_record(TypedDict, total=False):
    uuid: str
    name_label: str
    name_description: str
    type: enum_vdi_type
    tags: tuple[str, ...]
    SR: Ref[_SR]
    virtual_size: int
    physical_utilisation: int
    location: str
    missing: bool
    managed: bool
    VBDs: Collection[Ref[_VBD]]
    read_only: bool
    sharable: bool
    on_boot: enum_on_boot
    allow_caching: bool
    is_tools_iso: bool
    is_a_snapshot: bool
    snapshot_of: Ref[_VDI]
    snapshots: Collection[Ref[_VDI]]
    snapshot_time: datetime
    cbt_enabled: bool
    allowed_operations: tuple[enum_vdi_operations, ...]
    current_operations: Mapping[str, enum_vdi_operations]
    other_config: Mapping[str, str]
    xenstore_data: Mapping[str, str]
    sm_config: Mapping[str, str]
    metadata_of_pool: Ref[_pool]
    metadata_latest: bool
    crash_dumps: Collection[Ref[_crashdump]]
    storage_lock: bool
    parent: Ref[_VDI]

class VIF_record(TypedDict, total=False):
    uuid: str
    VM: Ref[_VM]
    network: Ref[_network]
    device: str
    currently_attached: bool
    MAC: str
    MAC_autogenerated: bool
    MTU: int
    locking_mode: enum_vif_locking_mode
    ipv4_allowed: tuple[str, ...]
    ipv6_allowed: tuple[str, ...]
    trunks: tuple[int, ...]
    ipv4_configuration_mode: enum_vif_ipv4_configuration_mode
    ipv4_addresses: tuple[str, ...]
    ipv4_gateway: str
    ipv6_configuration_mode: enum_vif_ipv6_configuration_mode
    ipv6_addresses: tuple[str, ...]
    ipv6_gateway: str
    qos_algorithm_type: str
    qos_algorithm_params: Mapping[str, str]
    qos_supported_algorithms: tuple[str, ...]
    allowed_operations: tuple[enum_vif_operations, ...]
    current_operations: Mapping[str, enum_vif_operations]
    other_config: Mapping[str, str]
    runtime_properties: Mapping[str, str]
    status_code: int
    status_detail: str
    metrics: Ref[_VIF_metrics]

class VM_record(TypedDict, total=False):
    uuid: str
    name_label: str
    name_description: str
    tags: tuple[str, ...]
    power_state: enum_vm_power_state
    allowed_operations: tuple[enum_vm_operations, ...]
    current_operations: Mapping[str, enum_vm_operations]
    resident_on: Ref[_host]
    blocked_operations: Mapping[enum_vm_operations, str]
    domid: int
    requires_reboot: bool
    is_a_template: bool
    is_default_template: bool
    is_a_snapshot: bool
    is_control_domain: bool
    memory_static_max: int
    memory_dynamic_max: int
    memory_dynamic_min: int
    memory_static_min: int
    memory_overhead: int
    HVM_shadow_multiplier: float
    VCPUs_max: int
    VCPUs_at_startup: int
    VCPUs_params: Mapping[str, str]
    domain_type: enum_domain_type
    HVM_boot_params: Mapping[str, str]
    platform: Mapping[str, str]
    bios_strings: Mapping[str, str]
    NVRAM: Mapping[str, str]
    secureboot_certificates_state: enum_vm_secureboot_certificates_state
    PV_bootloader: str
    PV_kernel: str
    PV_ramdisk: str
    PV_args: str
    PV_bootloader_args: str
    PV_legacy_args: str
    VBDs: Collection[Ref[_VBD]]
    VIFs: Collection[Ref[_VIF]]
    VGPUs: Collection[Ref[_VGPU]]
    VUSBs: Collection[Ref[_VUSB]]
    VTPMs: Collection[Ref[_VTPM]]
    attached_PCIs: Collection[Ref[_PCI]]
    consoles: Collection[Ref[_console]]
    has_vendor_device: bool
    hardware_platform_version: int
    snapshots: Collection[Ref[_VM]]
    snapshot_of: Ref[_VM]
    snapshot_time: datetime
    snapshot_info: Mapping[str, str]
    snapshot_metadata: str
    parent: Ref[_VM]
    children: Collection[Ref[_VM]]
    snapshot_schedule: Ref[_VMSS]
    is_vmss_snapshot: bool
    suspend_VDI: Ref[_VDI]
    suspend_SR: Ref[_SR]
    actions_after_shutdown: enum_on_normal_exit
    actions_after_reboot: enum_on_normal_exit
    actions_after_crash: enum_on_crash_behaviour
    actions_after_softreboot: enum_on_softreboot_behavior
    affinity: Ref[_host]
    scheduled_to_be_resident_on: Ref[_host]
    groups: tuple[Ref[_VM_group], ...]
    ha_restart_priority: str
    appliance: Ref[_VM_appliance]
    order: int
    start_delay: int
    shutdown_delay: int
    pending_guidances: tuple[enum_update_guidances, ...]
    pending_guidances_recommended: tuple[enum_update_guidances, ...]
    pending_guidances_full: tuple[enum_update_guidances, ...]
    metrics: Ref[_VM_metrics]
    guest_metrics: Ref[_VM_guest_metrics]
    other_config: Mapping[str, str]
    xenstore_data: Mapping[str, str]
    recommendations: str
    user_version: int
    version: int
    reference_label: str
    generation_id: str
    blobs: Mapping[str, Ref[_blob]]
    domarch: str
    last_booted_record: str
    last_boot_CPU_flags: Mapping[str, str]
    crash_dumps: Collection[Ref[_crashdump]]
    transportable_snapshot_id: str
    memory_target: int
    HVM_boot_policy: str
    PCI_bus: str
    ha_always_run: bool
    protection_policy: Ref[_VMPP]
    is_snapshot_from_vmpp: bool

class VM_appliance_record(TypedDict, total=False):
    uuid: str
    name_label: str
    name_description: str
    VMs: Collection[Ref[_VM]]
    allowed_operations: tuple[enum_vm_appliance_operation, ...]
    current_operations: Mapping[str, enum_vm_appliance_operation]

class VM_group_record(TypedDict, total=False):
    uuid: str
    name_label: str
    name_description: str
    placement: enum_placement_policy
    VMs: Collection[Ref[_VM]]

class VMPP_record(TypedDict, total=False):
    uuid: str
    name_label: str
    name_description: str
    VMs: Collection[Ref[_VM]]
    is_policy_enabled: bool
    backup_type: enum_vmpp_backup_type
    backup_frequency: enum_vmpp_backup_frequency
    backup_schedule: Mapping[str, str]
    backup_retention_value: int
    backup_last_run_time: datetime
    is_backup_running: bool
    archive_target_type: enum_vmpp_archive_target_type
    archive_target_config: Mapping[str, str]
    archive_frequency: enum_vmpp_archive_frequency
    archive_schedule: Mapping[str, str]
    archive_last_run_time: datetime
    is_archive_running: bool
    is_alarm_enabled: bool
    alarm_config: Mapping[str, str]
    recent_alerts: tuple[str, ...]

class VMSS_record(TypedDict, total=False):
    uuid: str
    name_label: str
    name_description: str
    enabled: bool
    type: enum_vmss_type
    frequency: enum_vmss_frequency
    schedule: Mapping[str, str]
    retained_snapshots: int
    last_run_time: datetime
    VMs: Collection[Ref[_VM]]

_blob = blob
_Bond = Bond
_Caller = Caller
_Certificate = Certificate
_Cluster = Cluster
_Cluster_host = Cluster_host
_console = console
_crashdump = crashdump
_DR_task = DR_task
_Driver_variant = Driver_variant
_Feature = Feature
_GPU_group = GPU_group
_host = host
_host_cpu = host_cpu
_host_crashdump = host_crashdump
_Host_driver = Host_driver
_host_metrics = host_metrics
_host_patch = host_patch
_LVHD = LVHD
_message = message
_network = network
_network_sriov = network_sriov
_Observer = Observer
_PBD = PBD
_PCI = PCI
_PGPU = PGPU
_PIF = PIF
_PIF_metrics = PIF_metrics
_pool = pool
_pool_patch = pool_patch
_pool_update = pool_update
_PUSB = PUSB
_PVS_cache_storage = PVS_cache_storage
_PVS_proxy = PVS_proxy
_PVS_server = PVS_server
_PVS_site = PVS_site
_Rate_limit = Rate_limit
_Repository = Repository
_role = role
_SDN_controller = SDN_controller
_secret = secret
_session = session
_SM = SM
_SR = SR
_subject = subject
_task = task
_tunnel = tunnel
_USB_group = USB_group
_user = user
_VBD = VBD
_VBD_metrics = VBD_metrics
_VDI = VDI
_VGPU = VGPU
_VGPU_type = VGPU_type
_VIF = VIF
_VIF_metrics = VIF_metrics
_VLAN = VLAN
_VM = VM
_VM_appliance = VM_appliance
_VM_group = VM_group
_VM_guest_metrics = VM_guest_metrics
_VM_metrics = VM_metrics
_VMPP = VMPP
_VMSS = VMSS
_VTPM = VTPM
_VUSB = VUSB

class Tables:
    blob: Table[_blob]
    Bond: Table[_Bond]
    Caller: Table[_Caller]
    Certificate: Table[_Certificate]
    Cluster: Table[_Cluster]
    Cluster_host: Table[_Cluster_host]
    console: Table[_console]
    crashdump: Table[_crashdump]
    DR_task: Table[_DR_task]
    Driver_variant: Table[_Driver_variant]
    Feature: Table[_Feature]
    GPU_group: Table[_GPU_group]
    host: Table[_host]
    host_cpu: Table[_host_cpu]
    host_crashdump: Table[_host_crashdump]
    Host_driver: Table[_Host_driver]
    host_metrics: Table[_host_metrics]
    host_patch: Table[_host_patch]
    LVHD: Table[_LVHD]
    message: Table[_message]
    network: Table[_network]
    network_sriov: Table[_network_sriov]
    Observer: Table[_Observer]
    PBD: Table[_PBD]
    PCI: Table[_PCI]
    PGPU: Table[_PGPU]
    PIF: Table[_PIF]
    PIF_metrics: Table[_PIF_metrics]
    pool: Table[_pool]
    pool_patch: Table[_pool_patch]
    pool_update: Table[_pool_update]
    PUSB: Table[_PUSB]
    PVS_cache_storage: Table[_PVS_cache_storage]
    PVS_proxy: Table[_PVS_proxy]
    PVS_server: Table[_PVS_server]
    PVS_site: Table[_PVS_site]
    Rate_limit: Table[_Rate_limit]
    Repository: Table[_Repository]
    role: Table[_role]
    SDN_controller: Table[_SDN_controller]
    secret: Table[_secret]
    session: Table[_session]
    SM: Table[_SM]
    SR: Table[_SR]
    subject: Table[_subject]
    task: Table[_task]
    tunnel: Table[_tunnel]
    USB_group: Table[_USB_group]
    user: Table[_user]
    VBD: Table[_VBD]
    VBD_metrics: Table[_VBD_metrics]
    VDI: Table[_VDI]
    VGPU: Table[_VGPU]
    VGPU_type: Table[_VGPU_type]
    VIF: Table[_VIF]
    VIF_metrics: Table[_VIF_metrics]
    VLAN: Table[_VLAN]
    VM: Table[_VM]
    VM_appliance: Table[_VM_appliance]
    VM_group: Table[_VM_group]
    VM_guest_metrics: Table[_VM_guest_metrics]
    VM_metrics: Table[_VM_metrics]
    VMPP: Table[_VMPP]
    VMSS: Table[_VMSS]
    VTPM: Table[_VTPM]
    VUSB: Table[_VUSB]
