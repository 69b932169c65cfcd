"""The page of a ceremony for people."""

from cli.ceremony import verify
from cli.ceremony.verify import Verified
from cli.page import render
from protocol.keys import key_id
from protocol.registry import Token


def page(verified: Verified) -> str:
    """One HTML file that shows what was verified."""
    transcript, declaration = verified.transcript, verified.declaration
    steps = verify.steps(transcript)
    signed = {
        holder.name: sum(holder.name in step.present for step in transcript.steps) for holder in declaration.holders
    }
    return render(
        "ceremony",
        network=declaration.network,
        first=steps[0]["time"],
        last=steps[-1]["time"],
        steps=steps,
        needed=declaration.needed,
        tier=declaration.least_tier,
        ceremony=verified.digest,
        genesis=verified.block.authentication,
        plan=declaration.plan,
        policies=declaration.policies,
        devices={
            name: f"{(it := transcript.token(name)).manufacturer} {it.model}, serial {it.serial}"
            for name in transcript.enrolled
        },
        keys=verify.keys(transcript),
        custody=_custody(verified),
        holders=[
            {"name": each.name, "key": key_id(each.key), "signed": signed[each.name]} for each in declaration.holders
        ],
    )


def _token(token: Token) -> str:
    return f"{token.manufacturer} {token.model}, serial {token.serial}"


def _custody(verified: Verified) -> str:
    """What is known of where the keys are, in a sentence."""
    audits = verify.audits(verified.transcript)
    if not audits:
        return "The tokens were not audited in this ceremony: that the keys cannot leave them is claimed, not shown."
    software = [device for device, statement in audits.items() if statement.predicate.token.software]
    if software:
        return f"Software tokens, which are no hardware whatever was tried on them: {', '.join(software)}."
    return "Every token was audited in this ceremony; none of them calls itself a software token."
