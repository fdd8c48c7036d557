"""Sign-in for a browser: the key goes into a cookie that no script reads and no other site's page sends."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.errors import UnauthenticatedError
from app.security import COOKIE, Access


class SignIn(BaseModel):
    """What a browser signs in with."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(max_length=256, description="A key made with `specnorm keys create`.")


class Session(BaseModel):
    """Who is signed in."""

    id: str
    scopes: list[str]


def router(access: Access) -> APIRouter:
    """Return the routes that begin and end a browser's session."""
    routes = APIRouter(prefix="/session", tags=["session"])

    @routes.post("")
    def sign_in(body: SignIn, request: Request, response: Response) -> Session:
        """Keep a key in a same-site cookie."""
        if access.keys is None:
            return Session(id="local", scopes=sorted(request.state.principal.scopes))
        principal = access.keys.find(body.key)
        if principal is None:
            raise UnauthenticatedError("That key is not known.")
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, body.key, httponly=True, samesite="strict", secure=secure, path="/")
        return Session(id=principal.id, scopes=sorted(principal.scopes))

    @routes.delete("", status_code=204)
    def sign_out(response: Response) -> None:
        """Forget the key."""
        response.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/")

    return routes
