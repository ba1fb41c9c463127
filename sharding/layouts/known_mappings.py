"""Known layouts that a table of paths describes in full."""

from epistream.sharding.layouts.mapping import MappingLayout, Rule

# IL-Studio's teleoperation recorder: raw cameras and numbers side by side, `actions` in the plural.
ILSTUDIO_TELEOP = MappingLayout(
    name="ilstudio-teleop",
    needs=("actions", "observations"),
    rules=(
        Rule("observations/qpos", "observation.state"),
        Rule("actions", "action"),
        Rule("observations/**", "*", kind="auto"),
    ),
)

# IL-Studio's export of VLA-OS.
ILSTUDIO_VLA_OS = MappingLayout(
    name="ilstudio-vla-os",
    needs=("action_ee", "observations/image/*"),
    rules=(
        Rule("observations/image/*", "observation.images.*", kind="frames"),
        Rule("observations/state_ee", "observation.state"),
        Rule("observations/state_joint", "observation.state_joint"),
        Rule("state_ee", "observation.state"),
        Rule("state_joint", "observation.state_joint"),
        Rule("action_ee", "action"),
        # Its texts (subtask, direction) are no numbers: OptimizedEpisodicDataset reads them from the files.
        Rule("reasoning/*", "reasoning.*"),
    ),
    tasks=("language_instruction",),
    fps_path="freq",
)

# RoboTwin 2: one joint vector; the action of a step is the state of the next. Its writer gives RGB arrays to
# OpenCV's encoder, and its readers decode with OpenCV.
ROBOTWIN = MappingLayout(
    name="robotwin",
    needs=("observation/*/rgb", "joint_action/vector"),
    rules=(
        Rule("observation/*/rgb", "observation.images.*", kind="frames", jpeg_channels="bgr"),
        Rule("joint_action/vector", "observation.state"),
        Rule("endpose/*", "observation.endpose.*"),
        Rule("joint_action/vector", "action", shift=1),
    ),
    # Instructions under `unseen` are kept for evaluation.
    task_files=("instructions/episode{number}.json", "../instructions/episode{number}.json"),
    task_key="seen",
)

# What RoboTwin's later releases export: states and actions are one trajectory, already shifted by a step against each
# other, several instructions as JSON. Pictures as above.
ROBOTWIN_V1 = MappingLayout(
    name="robotwin-v1",
    needs=("data_format_version", "state/*", "action/*"),
    rules=(
        Rule("vision/*/colors", "observation.images.*", kind="frames", jpeg_channels="bgr"),
        Rule("vision/*/depths", "observation.images.*_depth", kind="frames"),
        Rule("state/*", "observation.*"),
        Rule("action/*", "action.*"),
    ),
    tasks=("instructions", "instruction"),
    fps_path="additional_info/frequency",
)

# RDT's fine-tuning data: ALOHA's paths, and variants of the instruction in a file beside them.
RDT = MappingLayout(
    name="rdt",
    needs=("action", "observations/qpos", "observations/images/*"),
    rules=(
        Rule("observations/images/*", "observation.images.*", kind="frames", jpeg_channels="bgr"),
        Rule("observations/qpos", "observation.state"),
        Rule("observations/*", "observation.*"),
        Rule("action", "action"),
        Rule("base_action", "base_action"),
    ),
    tasks=("instruction",),
    task_files=("expanded_instruction_gpt-4-turbo.json",),
    needs_task_file=True,
)

OTHER_MAPPINGS = (ROBOTWIN, ROBOTWIN_V1, ILSTUDIO_VLA_OS, ILSTUDIO_TELEOP)
